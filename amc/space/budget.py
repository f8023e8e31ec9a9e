"""Budgets, and the space of policies within a budget.

A budget is one or several limits. AMC's resource-constrained action space (arXiv:1802.03494, Algorithm 1) is
`Space.allowed`: the settings of the next site with which the budget can still be met, if every later site takes its
smallest setting. It uses legal settings and exact costs, so nothing is rounded afterwards and no policy is over budget.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from amc.config import BudgetConfig, shown
from amc.errors import BudgetError, did_you_mean
from amc.space.resources import CostModel
from amc.space.sites import Choice, Floats, Ints, PolicyGrid, Setting

UNITS = {
    "macs": "MACs", "params": "parameters", "size": "bytes", "memory": "bytes", "latency": "ms",
    "branches": "residual branches",
}  # fmt: skip
FIELDS = {name: "flops" if name == "macs" else name for name in UNITS}
"""Resource → the field of the budget that limits it, which is also the name of the option."""
_AMOUNT = re.compile(r"([0-9]+(?:\.[0-9]+)?|\.[0-9]+)(e[+-]?[0-9]+)? *(%|[a-z]*)", re.IGNORECASE | re.ASCII)
LONGEST = 60
"""Most characters of an amount."""
_COUNT = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_BYTES = {"B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KIB": 2.0**10, "MIB": 2.0**20, "GIB": 2.0**30}
_MILLISECONDS = {"US": 1e-3, "MS": 1.0, "S": 1e3}
_SCALES = {"size": _BYTES, "memory": _BYTES, "latency": _MILLISECONDS}
_EXAMPLES = {"size": "500KB", "memory": "500KB", "latency": "3ms"}


NOTHING = 0.02
"""A step between settings counts as free if it changes latency by less than this share of the site's whole range."""


@dataclass(frozen=True)
class Budget:
    """Limits, each a share of the original (0.5, "50%") or absolute (20e6, "20M", "500KB"); None: no limit."""

    flops: float | str | None = None
    """Multiply-accumulates of one inference."""
    params: float | str | None = None
    size: float | str | None = None
    """Bytes of the ONNX file."""
    memory: float | str | None = None
    """Peak bytes of activations in memory."""
    latency: float | str | None = None
    """Time of one inference on ONNX Runtime; absolute with its unit only ("3ms", "800us")."""
    branches: float | str | None = None
    """Number of residual branches that are kept; the others are removed whole."""

    @classmethod
    def of(cls, value: object) -> Budget:
        """Convert a Python argument: a budget, a dict of limits, or a limit on MACs. Raises BudgetError.

        >>> Budget.of(0.5) == Budget.of({"flops": 0.5}) == Budget(flops=0.5)
        True
        >>> Budget.of({"size": "500KB"}).size
        '500KB'
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, Mapping):
            unknown = next((key for key in value if key not in FIELDS.values()), None)
            if unknown is not None:
                raise BudgetError(
                    f"budget: unknown limit {shown(unknown)}.{did_you_mean(str(unknown), FIELDS.values())}"
                )
            return cls(**value)
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            return cls(flops=value)
        text = shown(value) if isinstance(value, bool | list | tuple | None) else type(value).__name__
        raise BudgetError(
            f"budget is {text}, but must be an amc.Budget, a dict like {{'size': '1MB'}}, or a limit on MACs like 0.5."
        )

    @classmethod
    def from_config(cls, config: BudgetConfig) -> Budget:
        return cls(config.flops, config.params, config.size, config.memory, config.latency, config.branches)

    def limits(self, original: Mapping[str, float]) -> dict[str, float]:
        """Absolute limits by resource, given the costs of the original. Raises BudgetError.

        >>> Budget(flops=0.5, size="500KB").limits({"macs": 40e6, "size": 2e6})
        {'macs': 20000000.0, 'size': 500000.0}
        """
        found = {}
        for resource, field in FIELDS.items():
            value = getattr(self, field)
            if value is not None:
                if resource not in original and resource == "branches":
                    raise BudgetError("--branches: no residual branch of this network can be removed whole.")
                if resource not in original:
                    raise BudgetError(f"--{field} cannot be used here: the {resource} of a policy is not known.")
                found[resource] = parse_limit(field, value, original[resource])
        if not found:
            raise BudgetError(
                "no budget is given: use --flops 0.5, --latency 0.5, --params 100k, --size 500KB or --memory 0.5."
            )
        return found


def format_cost(resource: str, value: float) -> str:
    """A cost with its unit.

    >>> format_cost("macs", 20e6), format_cost("latency", 1.25)
    ('20,000,000 MACs', '1.25 ms')
    """
    return f"{value:.4g} ms" if resource == "latency" else f"{value:,.0f} {UNITS.get(resource, '')}".strip()


def is_absolute(latency: str) -> bool:
    """Whether a limit on latency is a time rather than a share."""
    return latency.strip()[-1:].isalpha()


def parse_limit(field: str, value: float | str, original: float) -> float:
    """Convert a limit to an absolute number. A value with %, or up to 1 without a unit, is a share of ``original``.

    >>> parse_limit("size", "500KB", 2e6), parse_limit("flops", 0.5, 40e6)
    (500000.0, 20000000.0)
    """
    match = _AMOUNT.fullmatch(str(value).strip()[: LONGEST + 1])
    kind = field.rpartition("-")[2]
    scales = _SCALES.get(kind, _COUNT)
    unit = match[3].upper() if match else ""
    number = float(match[1] + (match[2] or "")) if match else 0.0
    if (
        match is None
        or len(str(value)) > LONGEST
        or not (unit in scales or unit in ("", "%"))
        or (kind == "latency" and not unit and number > 1)
    ):
        raise BudgetError(f"--{field} is {shown(value)}, but must be like 0.5, 50% or {_EXAMPLES.get(kind, '20M')}.")
    if unit == "%":
        number, share = number / 100, True
    else:
        share = unit == "" and number <= 1
    if not 0 < number < float("inf") or (share and number > 1):
        raise BudgetError(f"--{field} is {shown(value)}: a share must be above 0 and at most 1 (100%).")
    return number * original if share else number * scales.get(unit, 1.0)


@dataclass(frozen=True, eq=False)
class Space(PolicyGrid):
    """The legal policies within a budget: the settings of every site, exact costs, and limits.

    Raises BudgetError when even the smallest policy is over budget.

    >>> from amc.space.sites import numeric_sites
    >>> class Sum:
    ...     def costs(self, sizes):
    ...         return {"macs": np.asarray(sizes, np.float64).sum(1)}
    >>> space = Space(numeric_sites("ab", [(1, 2, 4), (2, 4)]), Sum(), {"macs": 6.0})
    >>> space.fit([1.0, 1.0]), space.positions((2, 4)).tolist(), space.choice([1, 1])
    ((4, 2), [1, 1], (2, 4))
    """

    model: CostModel
    """Gives costs for sizes ``[B, S]``."""
    limits: Mapping[str, float]

    def __post_init__(self) -> None:
        least = self.costs(self.smallest)
        over = [name for name, limit in self.limits.items() if least[name] > limit]
        if over:
            full = self.costs(self.full)
            message = "; ".join(
                f"the least possible is {format_cost(n, least[n])} "
                f"({least[n] / full[n]:.3f} of the original), the limit {format_cost(n, self.limits[n])}"
                for n in over
            )
            raise BudgetError(f"the budget cannot be reached: {message}. Raise it, or lower --min-keep.")

    def costs(self, choice: Sequence[Setting]) -> dict[str, float]:
        """Costs of one policy, by resource."""
        return {name: float(values[0]) for name, values in self.costs_at(self.positions(choice)[None]).items()}

    def costs_at(self, positions: Ints) -> Mapping[str, Floats]:
        """Costs ``[B]`` by resource of the policies at ``positions [B, S]``."""
        return self.model.costs(self.sizes_at(positions))

    def fits(self, choices: Sequence[Sequence[Setting]]) -> NDArray[np.bool_]:
        """Which of the policies meet every limit, ``[B]``."""
        return self.fits_at(np.array([self.positions(choice) for choice in choices]).reshape(-1, len(self.sites)))

    def fits_at(self, positions: Ints) -> NDArray[np.bool_]:
        """Which of the policies at ``positions [B, S]`` meet every limit, ``[B]``."""
        sizes = self.sizes_at(positions)
        costs, ok = self.model.costs(sizes), np.ones(len(sizes), bool)
        for name, limit in self.limits.items():
            ok &= costs[name] <= limit
        return ok

    def allowed(self, prefix: Sequence[Setting]) -> Choice:
        """The settings of the next site with which the budget can still be met, in their order (Algorithm 1).

        ``prefix`` has the settings of the sites before it, with which the budget must be possible. If it no longer is,
        because costs were corrected since, the smallest setting is returned.
        """
        site = len(prefix)
        ok = self.fits_at(self._completed(prefix, 0 * self.lengths))
        return tuple(s for s, good in zip(self.settings[site], ok, strict=True) if good) or self.settings[site][:1]

    def as_fast(self, prefix: Sequence[Setting], setting: Setting, allowed: Sequence[Setting]) -> Setting:
        """The widest of the next site's settings ``allowed`` with the same latency as one of them, ``setting``.

        A runtime computes channels in blocks, so the next wider settings may be free. Without a limit on latency, it is
        ``setting`` itself.
        """
        if "latency" not in self.limits:
            return setting
        settings = self.settings[len(prefix)]
        times = self.costs_at(self._completed(prefix, self.lengths - 1))["latency"]
        start = settings.index(setting)
        most = times[start] + NOTHING * max(0.0, float(times[-1] - times.min()))
        return [s for s, ms in zip(settings[start:], times[start:], strict=True) if s in allowed and ms <= most][-1]

    def fit(self, shares: ArrayLike) -> Choice:
        """The policy near the budget whose sizes have the proportions ``shares [S]``; 0 only for a removed site.

        All shares are multiplied by the largest number that fits. What is left of the budget after rounding goes to the
        sites that rounding reduced most. With equal shares this is the uniform policy.
        """
        wanted = np.asarray(shares, np.float64) * self.full_sizes
        if bool(self.fits_at(self.lengths[None] - 1)[0]):
            return self.full
        scaled = self._scaled(wanted)
        low, high = -1, len(scaled) - 1  # scaled[high] is the original, which does not fit
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if bool(self.fits_at(scaled[middle][None])[0]) else (low, middle)
        return self._filled(scaled[low].copy() if low >= 0 else 0 * self.lengths, wanted)

    def fill(self, choice: Choice, wanted: Floats) -> Choice:
        """Widen sites step by step within the budget, always the one furthest below its size in ``wanted [S]``."""
        return self._filled(self.positions(choice), wanted)

    def _filled(self, places: Ints, wanted: Floats) -> Choice:
        """`fill` from positions ``[S]``, which are modified."""
        sites = np.flatnonzero(places + 1 < self.lengths)
        while len(sites):
            tried = np.repeat(places[None], len(sites), 0)
            tried[np.arange(len(sites)), sites] += 1
            ok = self.fits_at(tried)
            sites = sites[ok]  # a step that does not fit now will not fit later, since costs hardly ever decrease
            if len(sites):
                site = sites[int(np.argmax(wanted[sites] / self.sizes[sites, places[sites] + 1]))]
                places[site] += 1
                sites = sites[places[sites] + 1 < self.lengths[sites]]
        return self.choice(places.tolist())

    def _completed(self, prefix: Sequence[Setting], later: Ints) -> Ints:
        """Positions ``[K, S]``: the prefix, each of the K settings of the next site, and ``later [S]`` for the rest."""
        site = len(prefix)
        rows = np.repeat(later[None], self.lengths[site], 0)
        rows[:, :site] = self.positions(prefix)
        rows[:, site] = np.arange(len(rows))
        return rows

    def _scaled(self, wanted: Floats) -> Ints:
        """Positions ``[K, S]`` of all distinct policies with the proportions ``wanted [S]``, ascending."""
        # a setting changes only at a scale where the scaled size equals one of the site's sizes
        sizes = [np.array(site.sizes) for site in self.sites]
        met = [s / w for s, w in zip(sizes, wanted, strict=True) if w > 0]
        scales = np.unique(np.concatenate(met)) if met else np.ones(1)
        places = [np.searchsorted(s, w * scales + 1e-9, side="right") - 1 for s, w in zip(sizes, wanted, strict=True)]
        found: Ints = np.maximum(0, np.stack(places, 1))
        return found
