"""The folder that a run leaves for use, and getting a network out of it again.

==================  ==================================================================
model.onnx          the pruned, fine-tuned network
model.int8.onnx     the same in 8 bits, where that was asked for (--int8)
original.onnx       the network it came from, to be measured beside it
model.safetensors   the pruned network's tensors
policy.json         site → channels kept
result.json         everything in the final table, and how it came about
journal.jsonl       every evaluation
study.log           the same as an Optuna study, where the searcher is one of Optuna's
config.yaml         the configuration
report.md, .html    for people
==================  ==================================================================
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from amc.errors import BundleError
from amc.files import replacing
from amc.graph import build_graph
from amc.nested import Nested
from amc.policy import Policy
from amc.surgery import Dresser, twin
from amc.task.models import load_weights

FILES = (
    "model.onnx", "original.onnx", "model.safetensors", "policy.json", "result.json", "journal.jsonl",
    "config.yaml", "report.md", "report.html",
)  # fmt: skip


OPTIONAL = ("model.int8.onnx",)


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the tensors as safetensors; tensors that share memory are written each."""
    state = {name: t.detach().cpu().contiguous().clone() for name, t in model.state_dict().items()}
    with replacing(path) as temporary:
        temporary.write_bytes(save(state))


def read_result(folder: Path) -> dict[str, Any]:
    """The result.json of a bundle. Raises BundleError."""
    path = folder / "result.json"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BundleError(f"{folder} has no result.json: it is not a bundle, or its run has not ended.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"cannot read {path}: {error}") from None
    if not isinstance(result, dict) or result.get("format") != "amc-result":
        raise BundleError(f"{path} is not the result of a run.")
    return result


def apply(model: nn.Module, policy: Policy, example: Nested) -> nn.Module:
    """A pruned copy of ``model`` as the policy says, with the original's weights. Raises PolicyError.

    ``example`` is one input ``[1, ...]``; it tells which channels hang together.
    """
    was_training = model.training
    own = twin(model).eval()
    graph = build_graph(own, example)
    policy.check(graph, own)
    kept = [torch.tensor(policy.settings[site.name].kept).numpy() for site in graph.sites]
    Dresser(own, graph.layers).dress(kept)
    return copy.deepcopy(own).train(was_training)


def load(model: nn.Module, folder: str | Path, example: Nested) -> nn.Module:
    """The bundle's network: ``model``, the original, pruned as the policy says and given the bundle's weights."""
    where = Path(folder)
    if not where.is_dir():
        raise BundleError(f"there is no bundle {where}.")
    pruned = apply(model, Policy.load(where / "policy.json"), example)
    load_weights(pruned, str(where / "model.safetensors"))
    return pruned.eval()
