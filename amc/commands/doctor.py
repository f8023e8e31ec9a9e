"""`amc doctor`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from amc.commands.command import Answer, Command
from amc.commands.show import terminal

if TYPE_CHECKING:
    from amc.runtime.machine import Machine

GIB = 1 << 30
_LEAST_DISK = 500_000_000
_SHOWN = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm")


@dataclass(frozen=True)
class Finding:
    """What follows from something that the machine has or lacks."""

    state: str
    """``good``, ``note`` (works, but know this) or ``problem`` (would stop a run)."""
    text: str


def findings(machine: Machine) -> Iterator[Finding]:
    """What follows for runs on a machine."""
    yield _vectors(machine)
    yield _int8(machine)
    yield _quiet(machine)
    yield _training(machine)
    yield Finding("good" if machine.memory >= 2 * GIB else "note",
                  f"Calibrating and scoring take at most {machine.memory / 2 / GIB:.1f} GiB, half of the memory "
                  "(--memory-limit).")  # fmt: skip
    if machine.free_memory is not None and machine.free_memory < GIB:
        yield Finding("note", f"Only {machine.free_memory / GIB:.1f} GiB of memory are free now: end other programs, "
                              "or give a lower --memory-limit.")  # fmt: skip
    yield from _folders(machine)


def _vectors(machine: Machine) -> Finding:
    if machine.has("avx512f"):
        return Finding("good", "ONNX Runtime computes channels in blocks of 16 (AVX-512): widths that are multiples of "
                               "16 are fastest, and 12 channels take no less time than 16.")  # fmt: skip
    if machine.has("avx2"):
        return Finding("good", "ONNX Runtime computes channels in blocks of 8 (AVX2): widths that are multiples of 8 "
                               "are fastest.")  # fmt: skip
    if machine.has("asimd", "asimddp"):
        return Finding("good", "ONNX Runtime uses this CPU's vector instructions (Arm NEON).")
    return Finding("note", "The CPU has neither AVX2 nor AVX-512, as far as is known: ONNX Runtime is slow here, and "
                           "times differ much from those of other machines.")  # fmt: skip


def _int8(machine: Machine) -> Finding:
    if machine.has("avx512_vnni", "avx_vnni", "amx_int8", "i8mm", "asimddp"):
        return Finding("good", "The CPU multiplies 8-bit numbers directly (VNNI or the like): --int8 usually gives the "
                               "fastest model.")  # fmt: skip
    return Finding("note", "The CPU has no instructions for 8-bit products (VNNI): --int8 makes the file smaller, but "
                           "gains less time than elsewhere. The run measures it.")  # fmt: skip


def _quiet(machine: Machine) -> Finding:
    if machine.load > 0.5 * machine.usable:
        return Finding("note", f"The machine is busy (load {machine.load:.1f} on {machine.usable:g} cores): times that "
                               "are measured now are uncertain. Search with --latency when it is quiet.")  # fmt: skip
    return Finding("good", f"The machine is quiet (load {machine.load:.1f}): times can be measured.")


def _training(machine: Machine) -> Finding:
    if machine.gpus:
        return Finding("good", f"Training and scoring use the GPU ({machine.gpus[0].name}); --device cpu does without. "
                               "Latency is measured on the CPU.")  # fmt: skip
    return Finding("note", f"There is no GPU: everything runs on the CPU, with {machine.threads} threads. Small "
                           "networks take minutes; for large ones keep --finetune-epochs and --search-images low, or "
                           "train elsewhere (--no-finetune).")  # fmt: skip


def _folders(machine: Machine) -> Iterator[Finding]:
    if not machine.folder_writable:
        yield Finding("problem", f"{machine.folder} cannot be written to: go to another folder, or give --out.")
    if machine.free_disk < _LEAST_DISK:
        yield Finding("problem", f"only {machine.free_disk / 1e6:,.0f} MB are free in {machine.folder}: make room.")
    if machine.cache_trouble is not None:
        yield Finding("note", f"{machine.cache_trouble[0].upper()}{machine.cache_trouble[1:]}. $AMC_CACHE names "
                              "another folder.")  # fmt: skip


@dataclass(frozen=True)
class DoctorAnswer(Answer):
    """What the machine has, and what follows."""

    machine: Machine
    providers: Sequence[str]
    """Of ONNX Runtime."""

    @property
    def found(self) -> list[Finding]:
        """What follows."""
        return list(findings(self.machine))

    @property
    def code(self) -> int:
        return 2 if any(finding.state == "problem" for finding in self.found) else 0

    def show(self) -> None:
        from amc import __version__

        console, here = terminal(), self.machine
        free = "" if here.free_memory is None else f", {here.free_memory / GIB:.1f} GiB free"
        gpus = ", ".join(f"{gpu.name} ({gpu.memory / GIB:.0f} GiB)" for gpu in here.gpus)
        for name, text in (
            ("amc", f"{__version__}, Python {here.python}, torch {here.torch}, {here.system}"),
            ("CPU", here.cpu),
            ("instructions", ", ".join(flag for flag in _SHOWN if flag in here.flags) or "not known"),
            ("cores", f"{here.cores}, usable {here.usable:g}; torch uses {here.threads} threads"),
            ("runtime", f"{here.runtime}: {', '.join(self.providers)} (latency: CPU)"),
            ("GPU", gpus or "none"),
            ("memory", f"{here.memory / GIB:.1f} GiB{free}"),
            ("folder", f"{here.folder}, {here.free_disk / 1e9:,.1f} GB free"),
            ("cache", here.cache),
        ):
            console.print(f"{name:<13} {text}", soft_wrap=True)
        console.print()
        marks = {"good": "✓", "note": "!", "problem": "✗"}
        for finding in sorted(self.found, key=lambda f: list(marks).index(f.state)):
            console.print(f"{marks[finding.state]} {finding.text}")

    def document(self) -> dict[str, Any]:
        facts = asdict(self.machine)
        return {
            **facts,
            "flags": sorted(self.machine.flags),
            "providers": list(self.providers),
            "findings": [asdict(finding) for finding in self.found],
        }


def _add_nothing(parser: argparse.ArgumentParser) -> None:
    return None


def _doctor(parsed: argparse.Namespace) -> DoctorAnswer:
    from amc.latency.session import providers
    from amc.runtime.machine import Machine

    return DoctorAnswer(Machine.here(), providers())


DOCTOR = Command(
    "doctor",
    "tell what this machine has, and what follows from it",
    _add_nothing,
    _doctor,
    """examples:
  amc doctor
  amc doctor --json                          to add to a report of a problem
Exit code 2: something would stop a run.""",
)
