"""`amc evaluate`."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from amc.commands.command import Answer, Command


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="DIR", help="the folder of a finished run")
    parser.add_argument("--trust", action="store_true", help="run the Python files that the run names")


@dataclass(frozen=True)
class EvaluateAnswer(Answer):
    """What a bundle scores now, and what its run recorded."""

    scores: Any

    def show(self) -> None:
        now, recorded = 100 * self.scores.test, 100 * self.scores.recorded
        print(f"model.onnx: {self.scores.metric} {now:.2f} % on the test split (recorded: {recorded:.2f} %)")

    def document(self) -> dict[str, Any]:
        return asdict(self.scores)


def _evaluate(parsed: argparse.Namespace) -> EvaluateAnswer:
    from amc.pipeline.training import evaluate_bundle

    return EvaluateAnswer(evaluate_bundle(Path(parsed.bundle), parsed.trust))


EVALUATE = Command(
    "evaluate",
    "run a bundle's ONNX model on the test split again",
    _add_evaluate,
    _evaluate,
    """examples:
  amc evaluate amc-runs/resnet8-digits-1
  amc evaluate amc-runs/resnet8-digits-1 --json""",
)
