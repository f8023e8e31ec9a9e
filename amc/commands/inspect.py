"""`amc inspect`."""

from __future__ import annotations

import argparse

from amc.commands.command import Command
from amc.commands.options import add_options, configuration, given_values
from amc.commands.show import table, terminal
from amc.config import unless_auto


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    add_options(parser, ("budget", "finetune"))


def _inspect(parsed: argparse.Namespace) -> int:
    from amc.graph.build import build_graph
    from amc.operators.channels import legal_widths
    from amc.pipeline.pipeline import open_task
    from amc.space.resources import ResourceModel

    given = given_values(parsed)
    name = given.get("model", {}).get("name")
    if name:
        given["model"].setdefault("weights", "random")
    config = configuration(parsed, given)
    task = open_task(config)
    graph = build_graph(task.model, task.example)
    costs = ResourceModel(graph, task.model).cost([s.channels for s in graph.sites])
    console = terminal()
    console.print(f"{task.name}: {costs['macs'] / 1e6:,.2f} M MACs, {costs['params']:,.0f} parameters, "
                  f"{costs['memory'] / 1e3:,.0f} kB of activations at most")  # fmt: skip
    rows = []
    for site in graph.sites:
        widths = legal_widths(site.channels, config.search.least_share, unless_auto(config.search.channel_step))
        told = f"{widths[0]}…{widths[-2]}, {widths[-1]}" if len(widths) > 3 else ", ".join(map(str, widths))
        rows.append(
            [
                site.name,
                str(site.channels),
                told,
                f"{site.features.macs / 1e6:,.2f} M",
                str(len(site.layers)),
                str(len(site.consumers)),
            ]
        )
    console.print(table(["site", "channels", "widths", "MACs", "layers cut", "layers reading"], rows))
    for site in graph.sites:
        console.print(f"{site.name}: {', '.join(site.layers)} → {', '.join(site.consumers)}")
    for refusal in graph.refusals:
        console.print(f"not prunable: {refusal.name} ({refusal.channels} channels): {refusal.reason}")
    return 0


INSPECT = Command(
    "inspect",
    "list what can be pruned in a network, and what cannot and why",
    _add_inspect,
    _inspect,
    """examples:
  amc inspect --model resnet20 --data cifar10 --data-root DIR --weights random""",
)
