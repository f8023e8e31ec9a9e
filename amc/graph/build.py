"""The channel groups of a network, and why some of its channels cannot be removed.

`amc.graph.flow` says which channels depend on each other. That is not believed but tried (`amc.graph.verify`): channels
become a site only when a copy without some of them runs, keeps its output's shape, costs exactly what was predicted,
and computes what the original computes when the layers ignore those channels.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Container, Iterator, Mapping

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from amc.errors import ModelError, first_line
from amc.graph.assembly import Attributes, GraphAssembler
from amc.graph.attention import adapted, without_fast_path
from amc.graph.attributes import AttributeFinder
from amc.graph.channels import CONVS, TRANSPOSED
from amc.graph.flow import Flow
from amc.graph.grouping import Group, Grouping, group_channels
from amc.graph.selection import GroupSelector
from amc.graph.sites import Graph, Refusal
from amc.graph.trace import Trace, trace
from amc.graph.verify import Trial
from amc.task import nested
from amc.task.nested import Nested


def build_graph(model: nn.Module, example: Nested) -> Graph:
    """The channel groups of ``model``, each tried on a copy. ``example`` is one sample ``[1, ...]``.

    Raises ModelError when the network fails on its example, or has nothing to prune.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4, 10)).eval()
    >>> graph = build_graph(model, torch.randn(1, 3, 4, 4))
    >>> [(site.name, site.channels, site.consumers) for site in graph.sites]
    [('0', 8, ('3',))]
    >>> [(refusal.name, refusal.reason) for refusal in graph.refusals]
    [('3', "it is the network's output")]
    """
    # one memory layout for all: another would run other operators
    example = nested.mapped(lambda leaf: leaf.clone(memory_format=torch.contiguous_format), example)
    if model.training:
        raise ModelError("the network is in training mode: call .eval() first.")
    flow, traced = _follow(model, example)
    _freeze_shared(flow, model)
    trial = Trial(model, example, traced)
    grouping = group_channels(flow)
    assembler, chosen, reasons = _select(model, flow, traced, grouping, trial)
    if _tie_failed_heads(flow, grouping, chosen, reasons):
        grouping = group_channels(flow)
        assembler, chosen, reasons = _select(model, flow, traced, grouping, trial)
    refusals = tuple(_refusals(flow, grouping, chosen, reasons))
    if not chosen:
        why = "; ".join(f"{r.name}: {r.reason}" for r in refusals[:3]) or "no convolution or linear layer was found"
        raise ModelError(f"there is nothing to prune in this network ({why}).")
    return assembler.graph(chosen, refusals)


def _follow(model: nn.Module, example: Nested) -> tuple[Flow, Trace]:
    """What one forward pass tells of the channels, and its costs."""
    flow = Flow(model)
    try:
        with torch.no_grad(), without_fast_path():  # what a network keeps from its first pass on is there from now on
            nested.call(model, example)
        with adapted(model), flow.watching():
            traced = trace(model, example, flow)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ModelError(f"the network fails on its example input: {first_line(error)}") from error
    if _not_run(model, flow.layers.by_name):
        _follow_training(flow, model, example)
    return flow, traced


def _not_run(model: nn.Module, ran: Container[str]) -> list[str]:
    """Layers that have not run, as auxiliary classifiers do in training only."""
    kinds = (*CONVS, *TRANSPOSED, nn.Linear)
    return [name for name, module in model.named_modules() if isinstance(module, kinds) and name not in ran]


def _follow_training(flow: Flow, model: nn.Module, example: Nested) -> None:
    """A pass in training mode, so that the layers that run only then are followed too. The model is as before then."""
    twice = nested.mapped(lambda leaf: leaf.repeat(2, *[1] * (leaf.ndim - 1)), example)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    modes = {module: module.training for module in model.modules()}
    try:
        with (
            contextlib.suppress(Exception), torch.random.fork_rng(), adapted(model), flow.watching(counts=False)
        ):  # fmt: skip
            trace(model.train(), twice, flow)
    finally:
        for module, mode in modes.items():
            module.training = mode
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])


def _freeze_shared(flow: Flow, model: nn.Module) -> None:
    """A tensor that two layers hold could be cut for one of them only."""
    owners = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    for layer in flow.layers.by_name.values():
        module = model.get_submodule(layer.module)
        if any(owners[id(p)] > 1 for p in module.parameters(recurse=False)):
            for ids in (layer.output, layer.input):
                if ids is not None:
                    flow.ids.freeze(ids, f"{layer.name} shares its weights with another layer")


def _select(
    model: nn.Module, flow: Flow, traced: Trace, grouping: Grouping, trial: Trial
) -> tuple[GraphAssembler, Attributes, dict[Group, str]]:
    """The groups that pass the trial, and why the others do not."""
    assembler = GraphAssembler(model, flow, traced, grouping)
    selection = GroupSelector(assembler, AttributeFinder(model, flow, grouping.roots), trial)
    chosen = selection.select([group for group in grouping.groups if len(group.roots) > 1])
    single = {group: int(group.roots[0]) for group in grouping.groups if len(group.roots) == 1}
    reasons = {
        group: flow.ids.why_tied(grouping.roots, root) or "it has one channel only" for group, root in single.items()
    }
    assumed = [(set(grouping.of(ids).reshape(-1).tolist()), told) for ids, told in flow.assumed]
    for group, reason in selection.reasons.items():
        why = next((told for found, told in assumed if not found.isdisjoint(group.roots.tolist())), None)
        reasons[group] = why or reason
    return assembler, chosen, reasons


def _tie_failed_heads(flow: Flow, grouping: Grouping, chosen: Attributes, reasons: Mapping[Group, str]) -> bool:
    """Where heads failed, tie them with the stream that they read, if both are as wide: some attention wants that.

    Gives whether anything was tied; then the groups are others.
    """
    offered = {int(root) for group in chosen for root in group.roots}
    failed = {int(root): group for group in reasons if len(group.roots) > 1 for root in group.roots}
    tied = False
    for parts in flow.parts:
        heads = failed.get(int(grouping.roots[parts.ids.reshape(-1)[0]]))
        if heads is None or not parts.module:
            continue
        inside = [x for name, x in flow.layers.by_name.items() if name.startswith(f"{parts.module}.")]
        readers = [x.input for x in inside if x.input is not None and grouping.has(x.input, heads)]
        streams = [x.input for x in inside if x.input is not None and grouping.has(x.output, heads)]
        for reader, stream in ((r, s) for r in readers for s in streams):
            if len(stream) == len(reader) and not set(grouping.of(stream).tolist()) & offered:
                flow.ids.tie(stream, reader, "attention is as wide as its input")
                tied = True
    return tied


def _refusals(flow: Flow, grouping: Grouping, chosen: Attributes, reasons: Mapping[Group, str]) -> Iterator[Refusal]:
    """Every layer none of whose channels became a site, and why."""
    offered = {int(root) for group in chosen for root in group.roots}
    failed = {int(root): reason for group, reason in reasons.items() for root in group.roots}
    seen: set[int] = set()
    for layer in flow.layers.by_name.values():
        roots = set(grouping.of(layer.output).tolist())
        reason = "it has one channel only" if len(layer.output) == 1 else layer.refused
        if roots & offered or (layer.by_group and layer.refused is None and roots & seen):
            continue
        if roots <= seen and layer.refused is None:
            continue
        seen |= roots
        reason = reason or _why(roots, failed, grouping.frozen)
        computed = next(_parametrised(flow, grouping, roots & set(failed)), None)
        if computed is not None:
            reason += f"; {computed} is parametrised: torch.nn.utils.parametrize.remove_parametrizations may help"
        yield Refusal(layer.name, len(layer.output), reason)


def _parametrised(flow: Flow, grouping: Grouping, roots: set[int]) -> Iterator[str]:
    """The layers that make or read these channels and whose weights are computed by a parametrisation."""
    for layer in flow.layers.by_name.values():
        found = [root for ids in (layer.output, layer.input) if ids is not None for root in grouping.of(ids).tolist()]
        if not (layer.bare or roots.isdisjoint(found)) and is_parametrized(flow.own.holder(f"{layer.name}.weight")):
            yield layer.name


def _why(roots: set[int], failed: Mapping[int, str], frozen: Mapping[int, str]) -> str:
    """Why none of these roots is in a site."""
    for reasons in (failed, frozen):
        for root in sorted(roots):
            if root in reasons:
                return reasons[root]
    return "no layer reads it"
