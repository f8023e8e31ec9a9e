"""The contract of criteria, published as `amc.testing.check_criterion`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor, nn

from amc.config import DataConfig
from amc.graph.build import build_graph
from amc.graph.sites import Graph
from amc.importance.collectors import collect
from amc.importance.criterion import Criterion, Lacking, Need
from amc.importance.group import Activations, Part, SiteView, slots
from amc.importance.ranking import view
from amc.importance.registry import load_criterion
from amc.reconstruction.moments import Moments, readers
from amc.reconstruction.moments import collect as collect_moments
from amc.task import Task, load_data, make_task
from amc.task.models import build_model

P = TypeVar("P", bound=Part)
DEAD = 1
"""The channel of a `dead` network's sites whose weights are all 0."""


@dataclass(frozen=True, eq=False)
class Example:
    """A small network on digits, with what was collected of it."""

    name: str
    task: Task
    graph: Graph
    collected: dict[Need, Mapping[str, Tensor]]
    moments: dict[str, Moments]

    def site(self, index: int, criterion: Criterion) -> SiteView:
        """What a criterion sees of a site; statistics are collected the first time that they are needed."""
        for need in criterion.needs - self.collected.keys():
            self.collected[need] = collect(need, self.task, self.graph)
            if need is Need.MOMENTS:
                layers = readers(self.graph, self.task.model)
                self.moments.update(collect_moments(self.task, layers, 0))
        return view(self.graph, self.task.model, self.moments, index, criterion.needs, self.collected)


def check_criterion(criterion: Criterion | str) -> None:
    """Raise AssertionError, saying why, unless the criterion can be used.

    On three small networks (residual, depthwise, and one without normalisations whose last channels are flattened) it
    must give one finite score for every channel of every site, the same when called again, and in whatever order
    channels are listed; change nothing that it is given; need no more than it declares; let every layer of a
    group that it needs count; and, where it says ``dead_is_least``, score a channel whose weights are all 0 not above
    any other. ``criterion`` may be a name or ``file.py:object``.
    """
    criterion = load_criterion(criterion) if isinstance(criterion, str) else criterion
    seen = 0
    for example in examples():
        for index, site in enumerate(example.graph.sites):
            where = f"{criterion.name} on '{site.name}' of the {example.name} network"
            own = example.site(index, criterion)
            try:
                scores = _scores(criterion, own, where)
            except Lacking:  # the site has nothing of what the criterion needs, and is ranked by another
                continue
            seen += 1
            _check_repeats(criterion, own, scores, where)
            if not criterion.is_random:
                _check_listing(criterion, own, scores, where)
                _check_layers(criterion, own, scores, where)
    assert seen, f"{criterion.name} finds what it needs at no site of the example networks"
    if criterion.dead_is_least:
        _check_dead(criterion)


@lru_cache(maxsize=1)
def examples() -> tuple[Example, ...]:
    """The networks that criteria are tried on; what is collected of them is kept."""
    return tuple(_example(name, model, dead=False) for name, model in _networks())


@lru_cache(maxsize=1)
def dead_examples() -> tuple[Example, ...]:
    """The same, with a dead channel at every site."""
    return tuple(_example(name, model, dead=True) for name, model in _networks())


def _networks() -> list[tuple[str, nn.Module]]:
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 5, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(20, 12), nn.ReLU(), nn.Linear(12, 10),
    )  # fmt: skip
    depthwise = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 12, 1), nn.BatchNorm2d(12), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10),
    )  # fmt: skip
    return [("residual", build_model("resnet8", False, 1, 10)), ("depthwise", depthwise), ("plain", plain)]


def _example(name: str, model: nn.Module, dead: bool) -> Example:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.copy_(torch.rand(len(module.weight), generator=generator) + 0.5)
                module.bias.copy_(torch.randn(len(module.bias), generator=generator) / 4)
    task = make_task(name, model, load_data(DataConfig(calibration=64, search=100)), torch.device("cpu"))
    graph = build_graph(task.model, task.example)
    if dead:
        _zero_channel(task.model, graph)
    return Example(name, task, graph, {}, {})


def _zero_channel(model: nn.Module, graph: Graph) -> None:
    """Set all weights and biases of channel `DEAD` of every site to 0."""
    with torch.no_grad():
        for site in range(len(graph.sites)):
            for slot in slots(graph, model, site):
                mine = slot.positions[slot.channels == DEAD]
                whole = slot.oriented(model.get_parameter(slot.tensor))
                whole.movedim(slot.kind.dim, 0)[mine] = 0
                bias = getattr(model.get_submodule(slot.layer.name), "bias", None)
                if slot.kind.dim == 0 and bias is not None:
                    bias[mine] = 0


def _scores(criterion: Criterion, site: SiteView, where: str) -> Tensor:
    given = criterion.function(site)
    assert isinstance(given, Tensor), f"{where} gives a {type(given).__name__}, not a tensor"
    assert list(given.shape) == [site.channels], f"{where} gives {list(given.shape)}, not one number a channel"
    assert bool(torch.isfinite(given).all()), f"{where} gives a number that is not finite"
    if criterion.gives == "order":
        assert sorted(given.tolist()) == list(range(site.channels)), f"{where} does not give every channel once"
    return criterion.scores(site)


def _check_repeats(criterion: Criterion, site: SiteView, scores: Tensor, where: str) -> None:
    before = [tensor._version for tensor in _tensors(site)]
    assert torch.equal(criterion.scores(site), scores), f"{where} gives other scores when it is called again"
    assert [t._version for t in _tensors(site)] == before, f"{where} changes what it is given"


def _check_listing(criterion: Criterion, site: SiteView, scores: Tensor, where: str) -> None:
    """Channels with other numbers, in another order: the same scores under those numbers."""
    number = torch.randperm(site.channels, generator=torch.Generator().manual_seed(1))
    renamed = criterion.scores(_renumbered(site, number))
    ties = len(set(scores.tolist())) < site.channels
    if criterion.gives == "scores" or not ties:
        close = torch.allclose(renamed[number], scores, rtol=1e-4, atol=1e-6 * float(scores.abs().max()))
        assert close, f"{where} depends on the order in which channels are listed"


def _renumbered(site: SiteView, number: Tensor) -> SiteView:
    """Channel c is called ``number[c]``, and positions are listed from the last to the first."""
    where = torch.empty_like(number)
    where[number] = torch.arange(site.channels)

    def parts(group: tuple[P, ...]) -> tuple[P, ...]:
        return tuple(replace(p, positions=p.positions.flip(0), channels=number[p.channels].flip(0)) for p in group)

    seen = site.activations
    return replace(
        site,
        readers=parts(site.readers),
        producers=parts(site.producers),
        norms=parts(site.norms),
        activations=None if seen is None else Activations(*(getattr(seen, f.name)[where] for f in fields(seen))),
        contributions=None if site.contributions is None else site.contributions[:, where],
        weight_contributions=None if site.weight_contributions is None else site.weight_contributions[:, where],
        flow=None if site.flow is None else site.flow[where],
        attention=None if site.attention is None else site.attention[where],
    )


def _check_layers(criterion: Criterion, site: SiteView, scores: Tensor, where: str) -> None:
    """Every layer of the group that the criterion is shown counts: it scores otherwise when one is another."""
    if criterion.gives == "order":  # which another layer need not change
        return
    for part in site.parts:
        changed = replace(
            site,
            readers=_scaled(site.readers, part),
            producers=_scaled(site.producers, part),
            norms=_scaled(site.norms, part),
        )
        assert not torch.allclose(criterion.scores(changed), scores), f"{where} does not count {part.name}"


def _scaled(group: tuple[P, ...], part: Part) -> tuple[P, ...]:
    """The parts, ``part`` with other weights."""
    factors = torch.linspace(2, 5, part.weight.numel()).reshape(part.weight.shape)
    return tuple(replace(p, weight=p.weight * factors) if p is part else p for p in group)


def _check_dead(criterion: Criterion) -> None:
    for example in dead_examples():
        for index, site in enumerate(example.graph.sites):
            try:
                scores = criterion.scores(example.site(index, criterion))
            except Lacking:
                continue
            others = torch.cat([scores[:DEAD], scores[DEAD + 1 :]])
            assert float(scores[DEAD]) <= float(others.min()) + 1e-12, (
                f"{criterion.name} scores a channel of '{site.name}' whose weights are all 0 ({float(scores[DEAD]):g}) "
                f"above another ({float(others.min()):g})"
            )


def _tensors(site: SiteView) -> list[Tensor]:
    held = [site.contributions, site.weight_contributions, site.flow, site.attention]
    held += [t for p in site.parts for t in (p.weight, p.gradient, p.squared_gradient, p.curvature)]
    return [tensor for tensor in held if tensor is not None]
