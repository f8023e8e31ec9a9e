"""`amc evaluate`."""

from __future__ import annotations

import argparse
from pathlib import Path

from amc.commands.command import Command


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="DIR", help="the folder of a finished run")
    parser.add_argument("--trust", action="store_true", help="run the Python files that the run names")


def _evaluate(parsed: argparse.Namespace) -> int:
    from amc.pipeline.training import evaluate_bundle

    scores = evaluate_bundle(Path(parsed.bundle), parsed.trust)
    now, recorded = 100 * scores.test, 100 * scores.recorded
    print(f"model.onnx: {scores.metric} {now:.2f} % on the test split (recorded: {recorded:.2f} %)")
    return 0


EVALUATE = Command(
    "evaluate",
    "run a bundle's ONNX model on the test split again",
    _add_evaluate,
    _evaluate,
    """examples:
  amc evaluate amc-runs/resnet8-digits-1""",
)
