"""The kinds of cases, and how many of each."""

from __future__ import annotations

from collections.abc import Sequence

from tests.fuzz import commands, files, models, programs
from tests.fuzz.harness import Kind

KINDS: dict[str, Kind] = {
    "file": files.damaged,
    "program": programs.mutated,
    "operator": programs.single,
    "options": commands.options,
    "search": commands.search,
    "batch": commands.batch,
    "onnx": models.onnx_file,
    "weights": models.weights,
    "checkpoint": models.checkpoint,
    "policy": models.policy,
}


def dealt(kinds: Sequence[str], cases: int) -> list[tuple[str, int]]:
    """As many of each kind, one after the other."""
    return [(kinds[i % len(kinds)], i // len(kinds)) for i in range(cases)]


def prepare(kinds: Sequence[str]) -> None:
    """Make in the parent process what all children share."""
    if {"file", "weights"} & set(kinds):
        files.readers()
    if {"options", "search", "batch"} & set(kinds):
        commands.commands()
    if "policy" in kinds:
        models.networks()
    if {"program", "operator"} & set(kinds):
        programs.written()
        programs.words()
