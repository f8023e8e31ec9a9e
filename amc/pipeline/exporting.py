"""Export a run's network as ONNX and as a program, check both, and prove that the limits are met."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from amc.deploy.export import Parity, check_parity, check_program, export_pruned, read_onnx
from amc.deploy.fvcore_macs import count_with_fvcore
from amc.deploy.onnx_macs import count_onnx_macs
from amc.deploy.program import read_program, write_program
from amc.deploy.rewriting import write_rewritten
from amc.deploy.settings_file import store_settings
from amc.errors import BundleError, ExportError
from amc.graph.channels import Kept
from amc.graph.sites import Graph
from amc.graph.trace import Trace, trace, unprovable
from amc.latency import Runner
from amc.operators.branches import find_branches
from amc.operators.operator import PolicySetting
from amc.operators.registry import Operators
from amc.operators.weights_file import as_float
from amc.pipeline.original import original_onnx
from amc.pipeline.record import Record
from amc.runtime.files import write_text
from amc.space.budget import UNITS
from amc.task import nested

PARITY_SAMPLES = 64
"""Number of samples on which the files are compared with the network in torch."""
REWRITTEN_LIMIT = 1e-4
"""Largest accepted relative difference of a file that was made from the original's; exported files may have more."""


class Counted(NamedTuple):
    """The amount of one resource that the exported network needs."""

    amount: float
    how: str
    """How it was determined."""


@dataclass(frozen=True, eq=False)
class AppliedPolicy:
    """A policy that a network was compressed by."""

    kept: Kept
    """The kept channels of every group of the graph."""
    settings: Mapping[str, PolicySetting]
    """The entries of policy.json, by site."""
    operators: Operators

    def store(self, path: Path, model: nn.Module, removed: frozenset[str]) -> None:
        """Store the settings in the file of ``model``; layers ``removed`` are not in it. Raises ExportError."""
        store_settings(path, model, self.settings, removed, self.operators)


@dataclass(frozen=True, eq=False)
class Exported:
    """What is known about an exported network."""

    counted: Mapping[str, Counted]
    """By resource."""
    proof: list[dict[str, Any]]
    """One entry for each limit except latency."""
    macs: Mapping[str, Any]
    """Counted by amc and by fvcore."""
    parity: Parity
    unwritten: str | None
    """Why there is no program.json; None if there is one."""


def export_network(
    record: Record, model: nn.Module, graph: Graph, policy: AppliedPolicy, limits: Mapping[str, float]
) -> Exported:
    """Write model.onnx and program.json. Raises ExportError if their outputs differ, or a limit is exceeded."""
    search = record.task.splits.search
    inputs, _ = search.fetch(torch.arange(min(PARITY_SAMPLES, len(search))))
    absent, parity = _write_onnx(record, model.cpu(), graph, policy, inputs)
    unwritten = _export_program(record, model, inputs)
    traced = trace(model.cpu(), nested.to(record.task.example, "cpu"))
    counted = _count(record, model, graph, absent, traced)
    return Exported(counted, _prove(limits, counted, traced), _count_macs(record, model, traced), parity, unwritten)


def _write_onnx(
    record: Record, model: nn.Module, graph: Graph, policy: AppliedPolicy, inputs: nested.Nested
) -> tuple[frozenset[str], Parity]:
    """Write model.onnx from original.onnx, or export the network where that gives no file with the same outputs.

    Returns the names of the layers that are not in the file, and the difference from torch. Raises ExportError.
    """
    path = record.folder / "model.onnx"
    try:
        absent = write_rewritten(original_onnx(record), record.task.model, model, path, graph, policy.kept)
        policy.store(path, model, absent)
        return absent, check_parity(model, inputs, Runner(path), REWRITTEN_LIMIT)
    except ExportError:
        absent = export_pruned(model, record.task.example, path, graph, policy.kept)
        policy.store(path, model, absent)
        return absent, check_parity(model, inputs, Runner(path))


def _export_program(record: Record, model: nn.Module, inputs: nested.Nested) -> str | None:
    """Write program.json and check its outputs. Returns the reason if that is impossible, else None."""
    path = record.folder / "program.json"
    try:
        program = write_program(model, record.task.example)
        check_program(read_program(program, model.cpu().state_dict()), model.cpu(), inputs)
    except (ExportError, BundleError) as error:
        path.unlink(missing_ok=True)
        return str(error)
    write_text(path, json.dumps(program, separators=(",", ":")))
    return None


def _count(record: Record, model: nn.Module, graph: Graph, absent: frozenset[str], traced: Trace) -> dict[str, Counted]:
    """Costs of the exported network by resource. In torch, the layers ``absent`` still have one zeroed channel."""
    path = record.folder / "model.onnx"
    try:
        in_file = count_onnx_macs(path, record.task.example)
    except ExportError:  # use the pruned network, in which removed layers have one channel each
        in_file, from_file = traced.macs, False
    else:
        from_file = bool(absent) or in_file >= traced.macs
    held = [p for name, p in model.named_parameters() if absent.isdisjoint((name, name.rpartition(".")[0]))]
    pruned, file = "in the pruned network", "in model.onnx"
    return {
        "macs": Counted(in_file, f"counted {file}") if from_file else Counted(traced.macs, f"traced {pruned}"),
        "size": Counted(path.stat().st_size, "bytes of model.onnx"),
        "params": Counted(sum(p.numel() for p in held), f"counted {pruned}"),
        "memory": Counted(traced.peak, f"traced {pruned}"),
        "branches": Counted(len(find_branches(as_float(read_onnx(path)), graph)), f"counted {file}"),
    }


def _prove(limits: Mapping[str, float], counted: Mapping[str, Counted], traced: Trace) -> list[dict[str, Any]]:
    """Check every limit except latency on the exported network. Raises ExportError if one is exceeded."""
    proof: list[dict[str, Any]] = []
    for resource, limit in limits.items():
        if resource == "latency":  # measured after this (`amc.pipeline.measuring`)
            continue
        value, how = counted[resource]
        unproved = unprovable(traced) if resource == "macs" else None
        proof.append({"resource": resource, "unit": UNITS[resource], "limit": limit, "exported": value,
                      "met": value <= limit and unproved is None, "how": unproved or how})  # fmt: skip
    exceeded = [p for p in proof if p["exported"] > p["limit"]]
    if exceeded:
        p = exceeded[0]
        raise ExportError(
            f"the exported model has {p['exported']:,.0f} {p['unit']}, over the limit of {p['limit']:,.0f}."
        )
    return proof


def _count_macs(record: Record, model: nn.Module, traced: Trace) -> dict[str, Any]:
    """MACs of the delivered network, counted by amc and, independently, by fvcore."""
    theirs = count_with_fvcore(model, record.task.example)
    return {
        "amc": traced.macs,
        "fvcore": theirs.macs,
        "uncounted": list(traced.uncounted),
        "fvcore_uncounted": list(theirs.uncounted),
        "disagreement": theirs.disagreement(traced.by_operator),
    }
