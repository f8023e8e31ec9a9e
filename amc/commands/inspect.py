"""`amc inspect`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from amc.commands.command import Answer, Command
from amc.commands.options import add_options, configuration, given_values
from amc.commands.show import table, terminal
from amc.config import Config, options, unless_auto

_USED = ("search.min_keep", "search.channel_step", "objective", "device")
_UNUSED = tuple(
    path
    for path in (".".join(option.path) for option in options())
    if path not in _USED and not path.startswith(("model.", "data.", "budget.", "finetune."))
)


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    add_options(parser, ("budget", "finetune", "train"), _UNUSED)


@dataclass(frozen=True)
class InspectAnswer(Answer):
    """The sites of a network with their legal widths, and what cannot be pruned."""

    task: str
    costs: Mapping[str, float]
    graph: Any
    widths: Sequence[Sequence[int]]

    def show(self) -> None:
        console, costs = terminal(), self.costs
        console.print(f"{self.task}: {costs['macs'] / 1e6:,.2f} M MACs, {costs['params']:,.0f} parameters, "
                      f"{costs['memory'] / 1e3:,.0f} kB of activations at most")  # fmt: skip
        rows = [
            [site.name, str(site.channels), _listed(widths), f"{site.features.macs / 1e6:,.2f} M",
             str(len(site.layers)), str(len(site.consumers))]
            for site, widths in zip(self.graph.sites, self.widths, strict=True)
        ]  # fmt: skip
        console.print(table(["site", "channels", "widths", "MACs", "layers cut", "layers reading"], rows))
        for site in self.graph.sites:
            console.print(f"{site.name}: {', '.join(site.layers)} → {', '.join(site.consumers)}")
        for refusal in self.graph.refusals:
            console.print(f"not prunable: {refusal.name} ({refusal.channels} channels): {refusal.reason}")

    def document(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "macs": self.costs["macs"],
            "params": self.costs["params"],
            "memory": self.costs["memory"],
            "sites": [
                {"name": site.name, "channels": site.channels, "widths": list(widths), "macs": site.features.macs,
                 "layers": list(site.layers), "consumers": list(site.consumers)}
                for site, widths in zip(self.graph.sites, self.widths, strict=True)
            ],
            "refused": [{"name": r.name, "channels": r.channels, "reason": r.reason} for r in self.graph.refusals],
        }  # fmt: skip


def _listed(widths: Sequence[int]) -> str:
    return f"{widths[0]}, {widths[1]}, …, {widths[-1]}" if len(widths) > 3 else ", ".join(map(str, widths))


def _inspect(parsed: argparse.Namespace) -> InspectAnswer:
    from amc.graph.build import build_graph
    from amc.operators.channels import legal_widths
    from amc.pipeline.opening import open_for_inspection
    from amc.space.resources import ResourceModel

    given = given_values(parsed)
    if given.get("model", {}).get("name"):
        given["model"].setdefault("weights", "random")
    config = configuration(parsed, given)
    task = open_for_inspection(config, with_data=config.data != Config().data)
    graph = build_graph(task.model, task.example)
    costs = ResourceModel(graph, task.model).cost([s.channels for s in graph.sites])
    step = unless_auto(config.search.channel_step)
    widths = [legal_widths(site.channels, config.search.least_share, step) for site in graph.sites]
    return InspectAnswer(task.name, costs, graph, widths)


INSPECT = Command(
    "inspect",
    "list what can be pruned in a network, and what cannot and why",
    _add_inspect,
    _inspect,
    """examples:
  amc inspect                                     the embedded network
  amc inspect --model resnet20 --data cifar10 --data-root DIR
  amc inspect --model my_net.py:make --data my_data.py:make --json""",
    main=("--model", "--weights", "--data", "--data-root", "--image-size", "--min-keep", "--channel-step", "--config"),
)
