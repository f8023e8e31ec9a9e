"""Profiles: measure some policies of a network on this machine, and learn a latency model for all others.

A profile is a JSON file with the measurements, the network's operators, and the machine. The model is learned again
whenever the profile is loaded, which takes about a second. An interrupted profile is continued.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from amc.errors import LatencyError
from amc.latency.learned import Errors, Sample, Tables, learn, undisturbed
from amc.latency.operators import Line, Operator
from amc.runtime.files import read_json, write_json

Floats = NDArray[np.float64]
VERSION = 2
LEAST, MOST = 24, 200
"""Bounds on the number of measured networks."""
GOOD_ENOUGH = 0.006
"""Mean error at which measuring stops."""
FULL_EVERY = 25
"""One in so many networks is the original."""
REMOVE_EVERY = 3
"""One in so many networks has branches removed, if there are removable ones."""

LONGEST, HEAVIEST = 2**24, 2**30
"""Largest dimension and number of weights that are accepted from a file, since the size of tables grows with both."""

Measure = Callable[[Sequence[int]], Sample]


@dataclass(frozen=True, eq=False)
class Profile:
    """The measurements of one network on one machine."""

    key: Mapping[str, Any]
    """Network, runtime, CPU, threads and inputs: the profile is valid for these only."""
    sites: tuple[str, ...]
    full: tuple[int, ...]
    operators: tuple[Operator, ...]
    original_ms: float
    samples: tuple[Sample, ...] = ()
    seconds: float = 0.0
    """Time spent measuring so far."""

    def save(self, path: Path) -> None:
        """Write the profile as JSON."""
        write_json(path, {
            "format": "amc-profile", "version": VERSION, "key": dict(self.key), "sites": list(self.sites),
            "full": list(self.full), "operators": [_operator_to_json(op) for op in self.operators],
            "original_ms": self.original_ms, "seconds": round(self.seconds, 3),
            "samples": [_sample_to_json(s) for s in self.samples],
        })  # fmt: skip

    @classmethod
    def load(cls, path: Path) -> Profile:
        """Read and check a profile. Raises LatencyError."""
        try:
            return cls.from_json(read_json(path))
        except OSError as error:
            raise LatencyError(f"cannot read the profile {path}: {error.strerror}.") from None
        except LatencyError as error:
            raise LatencyError(f"cannot use the profile {path}: {error}. Delete it and measure again.") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise LatencyError(f"{path} is not a latency profile: make one with amc profile --out {path}.") from None

    @classmethod
    def from_json(cls, value: Any) -> Profile:
        """Parse and check a profile. Raises LatencyError for another version, ValueError and others for bad content."""
        if value["format"] != "amc-profile":
            raise ValueError
        if value["version"] != VERSION:
            raise LatencyError(f"it has version {repr(value['version'])[:20]}, but this amc reads version {VERSION}")
        sites, full = tuple(map(str, value["sites"])), tuple(_bounded(w, 1, LONGEST) for w in value["full"])
        found = tuple(_operator_from_json(op, len(sites)) for op in value["operators"])
        samples = tuple(
            Sample(
                tuple(_bounded(w, 0, most) for w, most in zip(s["widths"], full, strict=True)),
                float(s["ratio"]),
                float(s["quiet"]),
                float(s["original_ms"]),
                tuple(map(float, s["operators"])),
            )
            for s in value["samples"]
        )
        ms, seconds = float(value["original_ms"]), float(value["seconds"])
        numbers = [ms, seconds, *(x for s in samples for x in (s.ratio, s.undisturbed, s.original_ms, *s.operators))]
        positive = [ms, *(x for s in samples for x in (s.ratio, s.original_ms))]
        if not np.isfinite(numbers).all() or min(positive) <= 0 or len(sites) != len(full):
            raise ValueError
        if any(len(s.widths) != len(sites) or len(s.operators) != len(found) for s in samples):
            raise ValueError
        if _weights(found, full) > HEAVIEST:
            raise ValueError
        return cls(dict(value["key"]), sites, full, found, ms, samples, seconds)


def _sample_to_json(sample: Sample) -> dict[str, Any]:
    return {"widths": list(sample.widths), "ratio": sample.ratio, "quiet": sample.undisturbed,
            "original_ms": sample.original_ms, "operators": list(sample.operators)}  # fmt: skip


def _operator_to_json(op: Operator) -> dict[str, Any]:
    lines = {side: [line[0].tolist(), line[1]] for side, line in (("inputs", op.inputs), ("outputs", op.outputs))}
    return {"name": op.name, "kind": op.kind, **lines, "branch": op.branch}


def _operator_from_json(value: Mapping[str, Any], sites: int) -> Operator:
    inputs, outputs = (_line_from_json(value[side], sites) for side in ("inputs", "outputs"))
    branch = _bounded(value.get("branch", -1), -1, sites - 1)
    return Operator(str(value["name"]), str(value["kind"]), inputs, outputs, branch)


def _line_from_json(value: Any, sites: int) -> Line:
    slopes, constant = value
    if len(slopes) != sites:
        raise ValueError
    return np.array([_bounded(slope, 0, LONGEST) for slope in slopes], np.int64), _bounded(constant, 0, LONGEST)


def _weights(found: Sequence[Operator], full: Sequence[int]) -> float:
    """A lower bound on the number of weights of all operators at these widths."""
    w, weights = np.array(full, np.float64), 0.0
    for op in found:
        (i, i0), (o, o0) = op.inputs, op.outputs
        weights += max(1.0, float(i @ w) + i0) * max(1.0, float(o @ w) + o0)
    return weights


def _bounded(value: Any, least: int, most: int) -> int:
    number = int(value)
    if not least <= number <= most:
        raise ValueError(f"{number} is not between {least} and {most}")
    return number


def policies(
    settings: Sequence[Sequence[int]], removable: Sequence[int] = (), seed: int = 0
) -> Iterator[tuple[int, ...]]:
    """Policies to measure: the original now and then, and random ones, from uniform to very uneven over the sites.

    Every third policy removes a random subset of the branches at the sites ``removable``. The smallest networks of a
    search lack all of them, and the model should not have to extrapolate there.

    >>> next(policies([(4, 8), (8, 16)]))
    (8, 16)
    """
    rng = np.random.default_rng(seed)
    branches = np.random.default_rng((seed, 1))
    full = np.array([s[-1] for s in settings], np.float64)
    number = 0
    while True:
        if number % FULL_EVERY == 0:
            yield tuple(s[-1] for s in settings)
        else:
            shares = rng.uniform(0.15, 1.05) * np.exp(rng.uniform(0.0, 1.0) * rng.standard_normal(len(full)))
            wanted = (shares * full).tolist()
            widths = [min(s, key=lambda w, x=x: abs(w - x)) for s, x in zip(settings, wanted, strict=True)]  # type: ignore[misc]
            if removable and number % REMOVE_EVERY == 0:
                removed = branches.permutation(removable)[: branches.integers(1, len(removable) + 1)]
                widths = [0 if site in removed else width for site, width in enumerate(widths)]
            yield tuple(widths)
        number += 1


def collect(
    profile: Profile,
    settings: Sequence[Sequence[int]],
    measure: Measure,
    seconds: float,
    save: Callable[[Profile], None],
    progress: Callable[[float, str], None],
    clock: Callable[[], float] = time.monotonic,
) -> Profile:
    """Measure more policies until the model is accurate or ``seconds`` have passed; saved after every policy.

    On a noisy machine it may take up to twice as long, until enough networks were measured undisturbed.
    """
    start, checked, note = clock() - profile.seconds, 0, ""
    removable = sorted({op.branch for op in profile.operators if op.branch >= 0})
    for number, widths in enumerate(policies(settings, removable)):
        count = len(profile.samples)
        if number < count:
            continue
        if count >= LEAST and count >= 1.25 * checked:
            error = learn(profile.operators, profile.samples, profile.original_ms)[2]
            note, checked = f", error {100 * error.mean:.1f} %", count
            if error.mean <= GOOD_ENOUGH:
                break
        most = seconds if len(undisturbed(profile.samples)) >= LEAST else 2 * seconds
        if count >= MOST or (profile.seconds >= most and count >= LEAST):
            break
        profile = replace(profile, samples=(*profile.samples, measure(widths)), seconds=clock() - start)
        save(profile)
        progress(min(1.0, max(profile.seconds / seconds, (count + 1) / MOST)), f"{count + 1} networks measured{note}")
    return profile


class LearnedModel:
    """A latency model learned from a profile (see `amc.latency.model`)."""

    name, unit = "profile", "ms"

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.tables: Tables
        self.errors: Errors
        self.tables, self.block, self.errors = learn(profile.operators, profile.samples, profile.original_ms)

    def predict(self, widths: Mapping[str, int]) -> float:
        """Milliseconds of one policy."""
        return float(self.predict_all([[widths[site] for site in self.profile.sites]])[0])

    def predict_all(self, rows: ArrayLike) -> Floats:
        """Milliseconds ``[B]`` of the widths ``[B, S]``."""
        return self.tables(rows)
