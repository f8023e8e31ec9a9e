"""original.onnx, the unpruned network for ONNX Runtime: exported once in a run, and again if it is damaged."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import torch

from amc.deploy.export import check_onnx, check_parity, export_onnx
from amc.graph.surgery import shallow_copy
from amc.latency import Runner
from amc.pipeline.record import Record
from amc.pipeline.trust import file_code, is_own_file
from amc.runtime.files import replacing

FEW = 4
"""Number of samples on which the outputs of ONNX Runtime and torch are compared."""


def original_onnx(record: Record) -> Path:
    """The path of original.onnx. It is exported again if it is damaged or may be somebody else's."""
    path, journal = record.folder / "original.onnx", record.journal
    known = journal.last("original")
    if known is None or not path.exists() or not is_own_file(_sha256(path), known.get("code")):
        with replacing(path) as temporary:
            temporary.write_bytes(record.memo.original_onnx(lambda: _exported(record)))
            _check_runtime(record, temporary)
        digest = _sha256(path)
        journal.append("original", sha256=digest, code=file_code(digest))
    return path


def _exported(record: Record) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "original.onnx")
        export_onnx(record.task.model, record.task.example, path)
        return path.read_bytes()


def _check_runtime(record: Record, path: Path) -> None:
    """Check before the search that ONNX Runtime computes the same outputs as torch. Raises ExportError."""
    task = record.task
    inputs, _ = task.splits.search.fetch(torch.arange(min(FEW, len(task.splits.search))))
    check_parity(shallow_copy(task.model), inputs, Runner(path))


def _sha256(path: Path) -> str:
    check_onnx(path, own=True)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
