"""The kinds of cases, and how many of each."""

from __future__ import annotations

from collections.abc import Sequence

from tests.fuzz import files, programs
from tests.fuzz.harness import Kind

KINDS: dict[str, Kind] = {
    "file": files.damaged,
    "program": programs.mutated,
    "operator": programs.single,
}


def dealt(kinds: Sequence[str], cases: int) -> list[tuple[str, int]]:
    """As many of each kind, one after the other."""
    return [(kinds[i % len(kinds)], i // len(kinds)) for i in range(cases)]


def prepare(kinds: Sequence[str]) -> None:
    """Make in the parent process what all children share."""
    if "file" in kinds:
        files.readers()
    if {"program", "operator"} & set(kinds):
        programs.written()
        programs.words()
