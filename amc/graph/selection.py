"""Which groups of channels become sites: those that pass the trial, tried together as far as they do."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

from amc.graph.assembly import Attributes, GraphAssembler
from amc.graph.attributes import AttributeFinder
from amc.graph.channels import Layer
from amc.graph.grouping import Group
from amc.graph.verify import Trial

_MOST_FAILURES = (
    8  # trials that may fail among groups of one kind; those that are left then are refused as the last was
)


class GroupSelector:
    """Selects groups. ``reasons`` says why those that were not selected have failed."""

    def __init__(self, assembler: GraphAssembler, attributes: AttributeFinder, trial: Trial) -> None:
        self.reasons: dict[Group, str] = {}
        self._assembler, self._attributes, self._trial = assembler, attributes, trial
        self._failures = 0
        self._following: dict[Group, list[list[Layer]]] = {}

    def select(self, candidates: Sequence[Group]) -> Attributes:
        """The candidates that pass the trial together, in their order, with the attributes that follow them."""
        found = self._try({}, candidates)
        if found is None:
            found = {}
            kinds: dict[str, list[Group]] = defaultdict(list)
            for group in candidates:
                kinds[re.sub(r"\d+", "*", group.name)].append(group)
            for alike in kinds.values():
                self._failures = 0
                found = self._grow(found, alike)
        return {group: found[group] for group in candidates if group in found}

    def _grow(self, found: Attributes, more: Sequence[Group]) -> Attributes:
        """``found`` and what can be added of ``more``, by halves."""
        passed = self._try(found, more)
        if passed is not None:
            return passed
        self._failures += 1
        if len(more) == 1 or self._failures >= _MOST_FAILURES:
            return found
        if len(more) > 2:
            first, last = more[0], more[-1]
            failed = [self._try(found, [group]) is None for group in (first, last)]
            if all(failed) and _without_numbers(self.reasons[first]) == _without_numbers(self.reasons[last]):
                self.reasons |= dict.fromkeys(more, self.reasons[first])
                return found
        middle = len(more) // 2
        return self._grow(self._grow(found, more[:middle]), more[middle:])

    def _try(self, found: Attributes, more: Sequence[Group]) -> Attributes | None:
        """Both together, if they pass with any of the ways in which attributes may follow ``more``."""
        failure = ""
        for attributes in self._ways(more):
            chosen = {**found, **dict(zip(more, attributes, strict=True))}
            reason = self._trial(self._assembler.graph(chosen))
            if reason is None:
                for group in more:
                    self.reasons.pop(group, None)
                return chosen
            if not any(attributes):
                failure = reason
        self.reasons |= dict.fromkeys(more, failure)
        return None

    def _ways(self, groups: Sequence[Group]) -> Iterator[list[list[Layer]]]:
        """The ways in which attributes may follow the groups, the likeliest first; one of them is not to follow."""
        for group in groups:
            if group not in self._following:
                self._following[group] = self._attributes.following(group.roots)
        seen: list[list[list[Layer]]] = []
        for take in (1, 2, 0, 3, 4):
            way = [self._following[group][take] for group in groups]
            if way not in seen and (take == 0 or any(way)):
                seen.append(way)
                yield way


def _without_numbers(reason: str) -> str:
    return re.sub(r"\d+", "", reason)
