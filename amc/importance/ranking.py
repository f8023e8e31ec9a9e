"""From a criterion to the order in which every site loses its channels."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from amc.errors import ConfigError
from amc.graph.sites import Graph
from amc.importance.criterion import Criterion, Lacking, Need, descending
from amc.importance.group import Activations, Norm, Part, Producer, Reader, SiteView, Slot, slots, weight_in
from amc.importance.magnitude import l2
from amc.importance.registry import load_criterion
from amc.importance.statistics import Statistics
from amc.reconstruction.moments import Moments
from amc.runtime.plugins import is_plugin


def rank(
    name: str,
    graph: Graph,
    model: nn.Module,
    moments: Mapping[str, Moments],
    statistics: Statistics | None = None,
    seed: int = 0,
) -> list[Tensor]:
    """For every site its channels ``[C]``, the most important first. The result of a plug-in is checked.

    ``statistics`` holds what the criterion needs (`amc.importance.statistics`). A site that has nothing of it, such as
    one without a normalisation for ``bn-scale``, is ranked by the squared weights that read it. Raises ConfigError
    where no site has any.
    """
    criterion = load_criterion(name)
    orders = _for_every_site(
        criterion, name, graph, model, moments, statistics, seed, lambda site: descending(l2(site))
    )
    for site, order in zip(graph.sites, orders, strict=True):
        if sorted(order.tolist()) != list(range(site.channels)):
            raise ConfigError(
                f"the criterion {name} did not give every one of the {site.channels} channels of '{site.name}' once."
            )
    return orders


def score(
    name: str,
    graph: Graph,
    model: nn.Module,
    moments: Mapping[str, Moments],
    statistics: Statistics | None = None,
    seed: int = 0,
) -> list[Tensor]:
    """For every site the scores of its channels ``[C]``, higher for more important ones; see `rank`.

    Raises ConfigError where the criterion gives an order, or scores that are not finite.
    """
    criterion = load_criterion(name)
    check_scores(criterion)
    scores = _for_every_site(criterion.scores, name, graph, model, moments, statistics, seed, l2)
    for site, own in zip(graph.sites, scores, strict=True):
        if list(own.shape) != [site.channels] or not bool(torch.isfinite(own).all()):
            raise ConfigError(
                f"the criterion {name} did not give one finite score for each of the {site.channels} channels "
                f"of '{site.name}'."
            )
    return scores


def check_scores(criterion: Criterion) -> None:
    """Raise ConfigError for a criterion whose channels can be compared within a site only."""
    if criterion.gives == "order":
        raise ConfigError(
            f"--criterion {criterion.name} gives an order within a site, but --criterion-scope compares sites: "
            "use one that gives scores, such as --criterion l2-mean or taylor."
        )


def _for_every_site(
    evaluate: Callable[[SiteView], Tensor],
    name: str,
    graph: Graph,
    model: nn.Module,
    moments: Mapping[str, Moments],
    statistics: Statistics | None,
    seed: int,
    fallback: Callable[[SiteView], Tensor],
) -> list[Tensor]:
    """``evaluate`` of every site, or ``fallback`` of sites that lack what the criterion needs. Raises ConfigError."""
    found: list[Tensor] = []
    lacking: list[str] = []
    for index in range(len(graph.sites)):
        try:
            own = view(graph, model, moments, index, load_criterion(name).needs, statistics, seed)
            found.append(_checked(evaluate, name, own))
        except Lacking as lack:
            lacking.append(str(lack))
            found.append(fallback(view(graph, model, moments, index)).cpu())
    if len(lacking) == len(graph.sites):
        raise ConfigError(
            f"the criterion {name} needs {lacking[0]}, which no site of this network has: "
            "use another, such as --criterion obs or l1."
        )
    return found


def _checked(evaluate: Callable[[SiteView], Tensor], name: str, site: SiteView) -> Tensor:
    """The criterion's result. Any exception of a plug-in is reported as the user's mistake."""
    try:
        return torch.as_tensor(evaluate(site)).cpu()
    except Lacking:
        raise
    except Exception as error:
        if not is_plugin(name):
            raise
        raise ConfigError(f"the criterion {name} fails: {type(error).__name__}: {error}") from error


def view(
    graph: Graph,
    model: nn.Module,
    moments: Mapping[str, Moments],
    index: int,
    needs: frozenset[Need] = frozenset({Need.READERS, Need.MOMENTS}),
    statistics: Statistics | None = None,
    seed: int = 0,
) -> SiteView:
    """What a criterion with such ``needs`` sees of site ``index``."""
    known, here = statistics or {}, str(index)
    parts = [
        _part(slot, model, moments, needs, known)
        for slot in slots(graph, model, index)
        if {Producer: Need.PRODUCERS, Norm: Need.NORMS, Reader: Need.READERS}[slot.kind] in needs
    ]
    activations = known.get(Need.ACTIVATIONS, {}).get(here) if Need.ACTIVATIONS in needs else None
    gradients = known.get(Need.GRADIENTS, {}) if Need.GRADIENTS in needs else {}
    return SiteView(
        graph.sites[index].channels,
        tuple(p for p in parts if isinstance(p, Reader)),
        tuple(p for p in parts if isinstance(p, Producer)),
        tuple(p for p in parts if isinstance(p, Norm)),
        None if activations is None else Activations(*activations.unbind()),
        gradients.get(f"activation/{here}"),
        gradients.get(f"weight/{here}"),
        known.get(Need.FLOW, {}).get(here) if Need.FLOW in needs else None,
        known.get(Need.ATTENTION, {}).get(here) if Need.ATTENTION in needs else None,
        seed * 1_000_003 + index,
        graph.sites[index].name,
    )


def _part(
    slot: Slot,
    model: nn.Module,
    moments: Mapping[str, Moments],
    needs: frozenset[Need],
    known: Statistics,
) -> Part:
    """A layer's share in a site, with what is known of its weight."""
    held = weight_in(model, slot.layer)
    assert held is not None
    gradients = known.get(Need.GRADIENTS, {}) if Need.GRADIENTS in needs else {}
    curvature = known.get(Need.CURVATURE, {}) if Need.CURVATURE in needs else {}

    def shaped(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else slot.oriented(tensor).to(held.device)

    weight = slot.oriented(held.detach())
    common = {
        "name": slot.tensor,
        "gradient": shaped(gradients.get(f"gradient/{slot.tensor}")),
        "squared_gradient": shaped(gradients.get(f"square/{slot.tensor}")),
        "curvature": shaped(curvature.get(slot.tensor)),
    }
    if slot.kind is Reader:
        seen = moments.get(slot.layer.name) if Need.MOMENTS in needs else None
        return Reader(weight, slot.positions, slot.channels, seen, **common)  # type: ignore[arg-type]
    if slot.kind is Norm:
        shift = getattr(model.get_submodule(slot.layer.name), "bias", None)
        return Norm(weight, slot.positions, slot.channels, None if shift is None else shift.detach(), **common)  # type: ignore[arg-type]
    return Producer(weight, slot.positions, slot.channels, **common)  # type: ignore[arg-type]
