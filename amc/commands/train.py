"""`amc train`."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

from amc.commands.command import Answer, Command
from amc.commands.options import add_options, configuration, given_values
from amc.commands.progress import progress

_UNUSED = (
    "finetune.distillation", "finetune.temperature", "finetune.candidates", "finetune.trial_share",
    "finetune.schedule", "finetune.schedule_options", "finetune.recover", "finetune.recover_options",
    "int8", "latency_threads", "cache", "log", "memory_limit", "profile_seconds",
)  # fmt: skip


def _add_train(parser: argparse.ArgumentParser) -> None:
    texts = {
        "fine-tuning": "the training",
        "--weights": "what to start from: a .safetensors file, a state dict (.pt, .pth) or 'pretrained' [random]",
        "--finetune-epochs": "epochs of training, fractions allowed [auto: 100 on digits, 10 elsewhere]",
        "--seed": "seed of the training; the splits have their own, at least 0 [0]",
        "--out": "the file that the weights are written to [MODEL.safetensors]",
    }
    add_options(parser, ("budget", "search"), _UNUSED, texts)


@dataclass(frozen=True)
class TrainAnswer(Answer):
    """Where the weights are and what they score."""

    report: Any

    def show(self) -> None:
        report = self.report
        print(f"{report.path}: {report.metric} {100 * report.search:.2f} % on the search split, "
              f"{100 * report.test:.2f} % on the test split")  # fmt: skip
        if report.ranking is not None:
            print(f"{report.ranking}: the channels' scores; amc search --weights {report.path} "
                  f"--criterion ranking:{report.ranking} ranks by them")  # fmt: skip

    def document(self) -> dict[str, Any]:
        report = self.report
        found = {"weights": str(report.path), "metric": report.metric, "search": report.search, "test": report.test}
        return found if report.ranking is None else {**found, "ranking": str(report.ranking)}


def _train(parsed: argparse.Namespace) -> TrainAnswer:
    from amc.pipeline.training import train_network

    given = given_values(parsed)
    given.setdefault("model", {}).setdefault("weights", "random")
    config = configuration(parsed, given)
    with progress(parsed) as monitor:
        return TrainAnswer(train_network(config, monitor))


TRAIN = Command(
    "train",
    "train a network that has no weights yet, into a safetensors file",
    _add_train,
    _train,
    """examples:
  amc train --model resnet20 --data fashion-mnist --finetune-epochs 5 \\
      --out resnet20.safetensors
  amc train --model my_net.py:make --data imagefolder:photos
  amc train --model resnet8 --sparsify group-lasso --out sparse.safetensors
  amc train --model resnet8 --sparse rigl --density 0.1 --out rigl.safetensors
After an interruption the same command goes on. Then:
  amc search --flops 0.5 --model resnet20 --weights resnet20.safetensors ...""",
    main=(
        "--model",
        "--weights",
        "--data",
        "--data-root",
        "--finetune-epochs",
        "--lr",
        "--sparsify",
        "--sparse",
        "--density",
        "--batch-size",
        "--seed",
        "--device",
        "--config",
        "--out",
    ),
)
