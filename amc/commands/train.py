"""`amc train`."""

from __future__ import annotations

import argparse

from amc.commands.command import Command
from amc.commands.options import add_options, configuration, given_values


def _add_train(parser: argparse.ArgumentParser) -> None:
    add_options(parser, ("budget", "search"))


def _train(parsed: argparse.Namespace) -> int:
    from amc.pipeline.training import train_network
    from amc.runtime.monitor import shown

    given = given_values(parsed)
    given.setdefault("model", {}).setdefault("weights", "random")
    config = configuration(parsed, given)
    with shown() as monitor:
        report = train_network(config, monitor)
    print(f"{report.path}: {report.metric} {100 * report.search:.2f} % on the search split, "
          f"{100 * report.test:.2f} % on the test split")  # fmt: skip
    return 0


TRAIN = Command(
    "train",
    "train a network where there is none, into a safetensors file",
    _add_train,
    _train,
    """examples:
  amc train --model resnet20 --data fashion-mnist --finetune-epochs 5 --out resnet20.safetensors""",
)
