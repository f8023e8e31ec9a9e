"""Bundles: the folder with a run's results, and loading a network from it.

==================  ==================================================================
model.onnx          the pruned, fine-tuned network
model.int8.onnx     the same in 8 bits (only with --int8)
original.onnx       the original network, to measure latency beside it
model.safetensors   tensors of the pruned network
program.json        its operators; with the tensors, the network without its source class
policy.json         site → setting
result.json         everything in the final table, and how it was obtained
journal.jsonl       every evaluation
study.log           the evaluations as an Optuna study (only with Optuna's samplers)
config.yaml         the configuration
report.md, .html    reports
manifest.json       checksums of all files that are read again
==================  ==================================================================
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from safetensors.torch import save
from torch import nn

from amc.deploy.export import export_onnx, read_onnx
from amc.deploy.program import read_program
from amc.errors import BundleError, first_line
from amc.graph.build import build_graph
from amc.graph.surgery import shallow_copy
from amc.operators.branches import removed
from amc.operators.compose import apply_settings
from amc.operators.operator import NetworkFacts
from amc.operators.policy import Policy, read_inputs
from amc.operators.registry import Operators, beside_own
from amc.runtime.arguments import PATH, expect
from amc.runtime.files import MIB, opened, read_json, replacing, write_json
from amc.task.checks import copied, prepared, unwrapped
from amc.task.models import load_weights, read_state_dict
from amc.task.nested import Nested

FILES = (
    "model.onnx", "original.onnx", "model.safetensors", "program.json", "policy.json", "result.json", "journal.jsonl",
    "config.yaml", "report.md", "report.html", "manifest.json",
)  # fmt: skip
OPTIONAL = ("program.json", "model.int8.onnx")
"""Files that a bundle may lack: they were not requested, or could not be made (the notes in result.json say why)."""
_UNSEALED = frozenset(["journal.jsonl", "report.md", "report.html", "manifest.json"])
MANIFEST, VERSION = "amc-bundle", 1


def save_weights(model: nn.Module, path: Path) -> None:
    """Write all tensors as safetensors; tensors that share memory are written separately."""
    state = {name: t.detach().cpu().contiguous().clone() for name, t in model.state_dict().items()}
    with replacing(path) as temporary:
        temporary.write_bytes(save(state))


def seal(folder: Path) -> None:
    """Write the manifest with the checksum of every file that is read again."""
    names = [name for name in sorted({*FILES, *OPTIONAL}) if name not in _UNSEALED and (folder / name).is_file()]
    files = {name: {"sha256": _checksum(folder / name), "bytes": (folder / name).stat().st_size} for name in names}
    write_json(folder / "manifest.json", {"format": MANIFEST, "version": VERSION, "files": files})


def verified(folder: str | Path, *names: str) -> Path:
    """Check files of a bundle against its manifest and return the bundle's folder. Raises BundleError."""
    where = Path(folder)
    if not where.is_dir():
        raise BundleError(f"there is no bundle at {where}.")
    files = _manifest(where)
    for name in names:
        if name not in files:
            raise BundleError(f"{where} has no {name}.")
        try:
            checksum = _checksum(where / name)
        except OSError as error:
            raise BundleError(f"cannot read {where / name}: {error.strerror}.") from None
        if checksum != files[name]:
            raise BundleError(f"{where / name} is damaged: its checksum is not the one in manifest.json.")
    return where


def _manifest(folder: Path) -> dict[str, str]:
    """Read the manifest: file name → SHA-256."""
    path = folder / "manifest.json"
    try:
        manifest = read_json(path, MIB, own=True)
        if not isinstance(manifest, dict) or manifest.get("format") != MANIFEST:
            raise BundleError(f"{path} is not the manifest of a bundle.")
        if type(manifest.get("version")) is not int or manifest["version"] != VERSION:
            raise BundleError(
                f"{folder} has version {repr(manifest.get('version'))[:80]}, but this amc reads version {VERSION}."
            )
        return {str(name): str(entry["sha256"]) for name, entry in manifest["files"].items()}
    except FileNotFoundError:
        raise BundleError(f"{folder} has no manifest.json: it is not a bundle, or its run has not finished.") from None
    except OSError as error:
        raise BundleError(f"cannot read {path}: {_reason(error)}.") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"cannot read {path}: {type(error).__name__}: {first_line(error)}") from None


def _reason(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)


def _checksum(path: Path) -> str:
    with os.fdopen(opened(path, own=True), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def apply(
    model: nn.Module, policy: Policy | str | Path, example: Nested | None = None, *, operators: Operators = ()
) -> nn.Module:
    """A copy of ``model``, pruned by a policy or policy file, with the original's weights. Raises PolicyError.

    ``example`` is one sample ``[1, ...]``, needed to find coupled channels; the default is random data of the shapes
    that the policy records. ``operators`` are the user's own operators in the policy; built-in ones and those of
    installed packages are known.
    """
    expect("model", model, nn.Module, "a torch.nn.Module")
    expect("policy", policy, (Policy, *PATH), "an amc.Policy or its file")
    known = beside_own(operators)
    policy = policy if isinstance(policy, Policy) else Policy.load(policy, known)
    was_training = model.training
    own = prepared(shallow_copy(unwrapped(model))).eval()
    policy.check(own, example)
    example = policy.example() if example is None else example
    graph = build_graph(own, example)
    if policy.removes_branches:
        with tempfile.TemporaryDirectory() as folder:
            export_onnx(own, example, Path(folder, "original.onnx"))
            removed(read_onnx(Path(folder, "original.onnx")), graph, policy.kept(graph))
    apply_settings(own, NetworkFacts(own, graph), policy.settings, known)
    return copied(own).train(was_training)


def load(
    folder: str | Path, model: nn.Module | None = None, example: Nested | None = None, *, operators: Operators = ()
) -> nn.Module:
    """Load a bundle's network, in evaluation mode. Raises BundleError, or PolicyError for another ``model``.

    With the original ``model``, the result is a pruned copy of it with the bundle's weights. Without, it is the network
    as a program (`amc.deploy.program`), which does not need the source class. ``operators``: see `apply`.
    """
    expect("folder", folder, PATH, "a path")
    expect("model", model, nn.Module, "a torch.nn.Module", optional=True)
    if model is not None:
        where = verified(folder, "policy.json", "model.safetensors")
        pruned = apply(model, where / "policy.json", example, operators=operators)
        load_weights(pruned, str(where / "model.safetensors"))
        return pruned.eval()
    names = _manifest(Path(folder)) if Path(folder, "manifest.json").is_file() else {}
    if names and "program.json" not in names:
        raise BundleError(f"{folder} has no program.json: load it with the original network, amc.load(folder, model).")
    where = verified(folder, "program.json", "model.safetensors")
    inputs = None
    if "policy.json" in names:
        inputs = read_inputs(verified(folder, "policy.json") / "policy.json")
    try:
        program = read_json(where / "program.json", own=True)
    except (OSError, ValueError) as error:
        raise BundleError(f"cannot read {where / 'program.json'}: {_reason(error)}") from None
    return read_program(program, read_state_dict(str(where / "model.safetensors"), own=True), inputs).eval()
