"""Synaptic flow (Tanaka et al. 2020, SynFlow, arXiv:2006.05467).

Of the network with absolute weights and an input of ones, R is the sum of the outputs (equation 2), and

    s_w = ∂R/∂w · w

is how much of the flow runs through a weight. A neuron's incoming weights hold as much of it as its outgoing ones
(conservation, theorem 1), so a channel's score is its filters' sum. Scores change as channels are removed, so they are
computed in `ROUNDS` rounds (algorithm 1: iteration avoids layer collapse): in each, every site loses the channels with
the least flow, and the next round is without them. No data are read.

Deviations: the paper keeps one threshold for all weights of the network; here every site loses the same share of its
channels in each round, since the searcher chooses widths, and the last to be removed is the most important. BatchNorms
keep their absolute scale and variance, without mean and shift, as in the paper's code.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from amc.errors import ConfigError, first_line
from amc.graph.channels import BATCH_NORMS
from amc.graph.sites import Graph
from amc.importance.criterion import Criterion, Need, required
from amc.importance.group import Producer, SiteView, Slot, slots
from amc.importance.statistics import by_channel, is_parameter, trainable_copy
from amc.task import Task, nested

ROUNDS = 100
"""As in the paper; sites with fewer channels lose one in a round."""


def collect_flow(task: Task, graph: Graph) -> dict[str, Tensor]:
    """The rank ``[C]``, from 0, in which each channel is removed, by the site's number; ties are resolved by number."""
    model = positive(task.model)
    ones = nested.mapped(
        lambda x: torch.ones_like(x) if x.is_floating_point() else x, nested.to(task.example, task.device)
    )
    groups = [
        [slot for slot in slots(graph, model, i) if is_parameter(model, slot.tensor)] for i in range(len(graph.sites))
    ]
    sites = [i for i, group in enumerate(groups) if any(slot.kind is Producer for slot in group)]
    removed: list[list[int]] = [[] for _ in groups]
    rounds = min(ROUNDS, max(site.channels for site in graph.sites))
    for number in range(1, rounds + 1):
        flows = flow(model, ones)
        for i in sites:
            channels = graph.sites[i].channels
            sums = _sums(groups[i], flows, channels)
            sums[removed[i]] = torch.inf
            count = round(channels * number / rounds) - len(removed[i])
            least = sums.argsort(stable=True)[:count].tolist()
            _remove(model, groups[i], least)
            removed[i] += least
    return {str(i): torch.tensor(removed[i]).argsort().double() for i in sites}


def positive(model: nn.Module) -> nn.Module:
    """A copy in double precision with absolute weights and without biases."""
    own = trainable_copy(model).double()
    with torch.no_grad():
        for module in own.modules():
            for key, parameter in module._parameters.items():
                if parameter is not None:
                    fresh = torch.zeros_like(parameter) if key == "bias" else parameter.abs()
                    module._parameters[key] = nn.Parameter(fresh)
            if isinstance(module, BATCH_NORMS) and module.running_mean is not None:
                module.running_mean = torch.zeros_like(module.running_mean)
    return own


def flow(model: nn.Module, ones: nested.Nested) -> dict[str, Tensor]:
    """∂R/∂w · w of every parameter, by its name. Raises ConfigError where there is no derivative.

    >>> linear = nn.Linear(2, 1, bias=False)
    >>> _ = linear.weight.data.copy_(torch.tensor([[1.0, -2.0]]))
    >>> flow(positive(linear), torch.ones(1, 2))["weight"].tolist()
    [[1.0, 2.0]]
    """
    named = dict(model.named_parameters())
    inputs = nested.mapped(lambda x: x.double() if x.is_floating_point() else x, ones)
    try:
        with torch.enable_grad():
            total = torch.stack([leaf.sum() for leaf in nested.leaves(nested.call(model, inputs))]).sum()
        slopes = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(
            f"the criterion synflow needs derivatives, which this network cannot give ({first_line(error)}): "
            "use another, such as --criterion obs or l1."
        ) from error
    return {name: torch.zeros_like(w) if g is None else (g * w).detach()
            for (name, w), g in zip(named.items(), slopes, strict=True)}  # fmt: skip


def _sums(group: list[Slot], flows: dict[str, Tensor], channels: int) -> Tensor:
    """The flow through the filters of every channel ``[C]``."""
    parts = [by_channel(slot.rows(flows[slot.tensor]).sum(1), slot.channels, channels)
             for slot in group if slot.kind is Producer]  # fmt: skip
    return torch.stack(parts).sum(0).nan_to_num(torch.inf).cpu()


def _remove(model: nn.Module, group: list[Slot], channels: list[int]) -> None:
    """Set all weights of some channels to 0."""
    with torch.no_grad():
        for slot in group:
            mine = slot.positions[torch.isin(slot.channels.cpu(), torch.tensor(channels)).to(slot.positions.device)]
            slot.oriented(model.get_parameter(slot.tensor)).movedim(slot.kind.dim, 0)[mine] = 0


def synflow(site: SiteView) -> Tensor:
    """The rank in which each channel is removed ``[C]``."""
    return required(site.flow, "synaptic flow through layers of its own")


CRITERION = Criterion(
    "synflow",
    "how late a channel loses its synaptic flow, without data",
    "Tanaka et al. 2020, SynFlow, arXiv:2006.05467",
    synflow,
    frozenset({Need.FLOW}),
)
