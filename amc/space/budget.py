"""Limits on resources, and what they still allow.

A budget is one or several limits. AMC's resource-constrained action space (arXiv:1802.03494, Algorithm 1) is
`Space.allowed`: the settings of the next site that leave the budget reachable when every later site is cut as
far as allowed. It is decided on the legal settings with the exact costs, so nothing is rounded afterwards and
no policy ends over budget.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from amc.config import BudgetConfig
from amc.errors import BudgetError
from amc.space.policy import Choice
from amc.space.resources import CostModel, Floats

UNITS = {
    "macs": "MACs", "params": "parameters", "size": "bytes", "memory": "bytes", "latency": "ms",
    "branches": "residual branches",
}  # fmt: skip
_FIELDS = {"flops": "macs", **{name: name for name in UNITS if name != "macs"}}
_COUNT = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_BYTES = {"B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KIB": 2.0**10, "MIB": 2.0**20, "GIB": 2.0**30}
_MILLISECONDS = {"US": 1e-3, "MS": 1.0, "S": 1e3}
_SCALES = {"size": _BYTES, "memory": _BYTES, "latency": _MILLISECONDS}
_EXAMPLES = {"size": "500KB", "memory": "500KB", "latency": "3ms"}


NOTHING = 0.02
"""A share of what a site's whole range is worth in time; a step that saves less saves nothing."""


@dataclass(frozen=True)
class Budget:
    """Limits, each a share of the original (0.5, "50%") or absolute (20e6, "20M", "500KB"); None: no limit."""

    flops: float | str | None = None
    """Multiply-accumulates of one inference."""
    params: float | str | None = None
    size: float | str | None = None
    """Bytes of the ONNX file."""
    memory: float | str | None = None
    """Bytes of activations alive at once."""
    latency: float | str | None = None
    """Time of one inference on ONNX Runtime; absolute with its unit only ("3ms", "800us")."""
    branches: float | str | None = None
    """Residual branches that are left; the others are removed whole."""

    @classmethod
    def from_config(cls, config: BudgetConfig) -> Budget:
        return cls(config.flops, config.params, config.size, config.memory, config.latency, config.branches)

    def limits(self, original: Mapping[str, float]) -> dict[str, float]:
        """Absolute limits by resource, given what the original costs. Raises BudgetError."""
        found = {}
        for field, resource in _FIELDS.items():
            value = getattr(self, field)
            if value is not None:
                if resource not in original and resource == "branches":
                    raise BudgetError("--branches: no residual branch of this network can be removed whole.")
                if resource not in original:
                    raise BudgetError(f"--{field} cannot be used here: nothing tells the {resource} of a policy.")
                found[resource] = parse_limit(field, value, original[resource])
        if not found:
            raise BudgetError(
                "no budget is given: say --flops 0.5, --latency 0.5, --params 100k, --size 500KB or --memory 0.5."
            )
        return found


def told(resource: str, value: float) -> str:
    """A cost with its unit."""
    return f"{value:.4g} ms" if resource == "latency" else f"{value:,.0f} {UNITS.get(resource, '')}".strip()


def is_absolute(latency: str) -> bool:
    """Whether a limit on latency is a time, not a share."""
    return latency.strip()[-1:].isalpha()


def parse_limit(field: str, value: float | str, original: float) -> float:
    """One limit as an absolute number: up to 1 without a unit, or with %, is a share of ``original``."""
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*(%|[a-zA-Z]*)\s*", str(value), re.IGNORECASE)
    kind = field.rpartition("-")[2]
    scales = _SCALES.get(kind, _COUNT)
    unit = match[2].upper() if match else ""
    number = float(match[1]) if match else 0.0
    if match is None or not (unit in scales or unit in ("", "%")) or (kind == "latency" and not unit and number > 1):
        raise BudgetError(f"--{field} is {value!r}, but must be like 0.5, 50% or {_EXAMPLES.get(kind, '20M')}.")
    if unit == "%":
        number, share = number / 100, True
    else:
        share = unit == "" and number <= 1
    if not 0 < number < float("inf") or (share and number > 1):
        raise BudgetError(f"--{field} is {value!r}: a share must be above 0 and at most 1 (100%).")
    return number * original if share else number * scales.get(unit, 1.0)


@dataclass(frozen=True, eq=False)
class Space:
    """The policies that may be chosen: legal settings per site, exact costs, and limits on them.

    Raises BudgetError when even the smallest policy is over budget.
    """

    names: tuple[str, ...]
    settings: tuple[tuple[int, ...], ...]
    """For every site its legal settings, ascending; the last is the original's."""
    model: CostModel
    limits: Mapping[str, float]

    def __post_init__(self) -> None:
        least = {name: float(v[0]) for name, v in self.model.costs([self.smallest]).items()}
        over = [name for name, limit in self.limits.items() if least[name] > limit]
        if over:
            full = {name: float(v[0]) for name, v in self.model.costs([self.full]).items()}
            message = "; ".join(
                f"the least reachable is {told(n, least[n])} "
                f"({least[n] / full[n]:.3f} of the original), the limit {told(n, self.limits[n])}"
                for n in over
            )
            raise BudgetError(f"the budget cannot be reached: {message}. Raise it, or lower --min-keep.")

    @property
    def smallest(self) -> Choice:
        """Every site cut as far as allowed."""
        return tuple(s[0] for s in self.settings)

    @property
    def full(self) -> Choice:
        """The original network."""
        return tuple(s[-1] for s in self.settings)

    def costs(self, choice: Sequence[int]) -> dict[str, float]:
        """What one policy costs, by resource."""
        return {name: float(values[0]) for name, values in self.model.costs([choice]).items()}

    def fits(self, choices: ArrayLike) -> NDArray[np.bool_]:
        """Which of the policies ``[B, S]`` meet every limit, ``[B]``."""
        costs = self.model.costs(choices)
        ok = np.ones(len(np.atleast_2d(np.asarray(choices))), bool)
        for name, limit in self.limits.items():
            ok &= costs[name] <= limit
        return ok

    def is_legal(self, choice: Sequence[int]) -> bool:
        """Whether every setting is one that its site may have."""
        return len(choice) == len(self.settings) and all(c in s for c, s in zip(choice, self.settings, strict=True))

    def allowed(self, prefix: Sequence[int]) -> tuple[int, ...]:
        """The settings of the next site that leave the budget reachable, ascending (Algorithm 1).

        ``prefix`` holds the settings of the sites before it, and must itself leave the budget reachable. Where it
        does not any more, since costs were corrected meanwhile, the smallest setting is what is left.
        """
        site = len(prefix)
        later = self.smallest[site + 1 :]
        settings = self.settings[site]
        ok = self.fits([(*prefix, setting, *later) for setting in settings])
        return tuple(s for s, good in zip(settings, ok, strict=True) if good) or settings[:1]

    def as_fast(self, prefix: Sequence[int], setting: int, allowed: Sequence[int]) -> int:
        """The widest of the next site's settings ``allowed`` that takes no more time than ``setting``, one of them.

        A runtime computes channels in blocks, so where latency is limited the next wider ones may come for nothing.
        """
        if "latency" not in self.limits:
            return setting
        settings, later = self.settings[len(prefix)], self.full[len(prefix) + 1 :]
        times = self.model.costs([(*prefix, width, *later) for width in settings])["latency"]
        most = times[settings.index(setting)] + NOTHING * max(0.0, float(times[-1] - times.min()))
        return max(w for w, ms in zip(settings, times, strict=True) if w in allowed and w >= setting and ms <= most)

    def fit(self, shares: ArrayLike) -> Choice:
        """The policy near the budget whose widths are in the proportions ``shares [S]``, 0 only for what is removed.

        All shares are scaled by one number, the largest that fits; what the rounding leaves is then given to
        the sites that lost most by it. With equal shares this is the uniform policy.
        """
        wanted = np.asarray(shares, np.float64) * np.array(self.full)
        if bool(self.fits([self.full])[0]):
            return self.full
        scaled = self._scaled(wanted)
        low, high = -1, len(scaled) - 1  # scaled[high] is the whole network, which does not fit
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if bool(self.fits(scaled[middle])[0]) else (low, middle)
        return self.fill(tuple(scaled[low].tolist()) if low >= 0 else self.smallest, wanted)

    def fill(self, choice: Choice, wanted: Floats) -> Choice:
        """Widen sites one step at a time while the budget allows, those first that fall furthest short."""
        widths = np.array(choice, np.int64)
        places = np.array([s.index(w) for s, w in zip(self.settings, choice, strict=True)], np.int64)
        sites = np.flatnonzero(places + 1 < self._lengths)
        while len(sites):
            wider = self._table[sites, places[sites] + 1]
            tried = np.repeat(widths[None], len(sites), 0)
            tried[np.arange(len(sites)), sites] = wider
            ok = self.fits(tried)
            sites, wider = sites[ok], wider[ok]  # what does not fit now never will: costs only grow
            if len(sites):
                best = int(np.argmax(wanted[sites] / wider))
                site = sites[best]
                widths[site], places[site] = wider[best], places[site] + 1
                sites = sites[places[sites] + 1 < self._lengths[sites]]
        return tuple(widths.tolist())

    def _scaled(self, wanted: Floats) -> NDArray[np.int64]:
        """The policies ``[K, S]`` in the proportions ``wanted [S]``, ascending: all that some scale gives."""
        # the widths change only where a scaled one meets a setting: these scales are all there is to try
        met = [np.array(s) / w for s, w in zip(self.settings, wanted, strict=True) if w > 0]
        scales = np.unique(np.concatenate(met)) if met else np.ones(1)
        places = [
            np.searchsorted(s, w * scales + 1e-9, side="right") - 1 for s, w in zip(self.settings, wanted, strict=True)
        ]
        return np.stack([np.array(s)[np.maximum(0, p)] for s, p in zip(self.settings, places, strict=True)], 1)

    @cached_property
    def _lengths(self) -> NDArray[np.int64]:
        """How many settings each site has ``[S]``."""
        return np.array([len(s) for s in self.settings])

    @cached_property
    def _table(self) -> NDArray[np.int64]:
        """The settings ``[S, K]``, where a site has fewer than K with zeros after them."""
        table = np.zeros((len(self.settings), int(self._lengths.max(initial=0))), np.int64)
        for site, settings in enumerate(self.settings):
            table[site, : len(settings)] = settings
        return table
