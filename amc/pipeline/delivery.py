"""The end of a run: scores on the test split, which is read once, and the bundle."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import nn

from amc.deploy import bundle
from amc.deploy.result import read_result
from amc.errors import DataError
from amc.evaluation.problem import recorded
from amc.evaluation.reward import Evaluation
from amc.latency import onnx_metric
from amc.operators.policy import Policy
from amc.pipeline.measuring import INT8
from amc.pipeline.record import Record
from amc.pipeline.recovering import drop_checkpoints
from amc.pipeline.result import Result
from amc.pipeline.spaces import used_operators
from amc.runtime.files import sweep, write_json
from amc.task import evaluate


class Delivery:
    """Tests the finished network and writes the bundle."""

    def __init__(self, record: Record) -> None:
        self.record = record

    def finished(self) -> Result:
        """The result of a run that is done, read from its folder."""
        record = self.record
        operators = used_operators(record.config)
        model = bundle.load(record.folder, record.task.model, record.task.example, operators=operators)
        policy = Policy.load(record.folder / "policy.json", operators)
        evaluations = tuple(recorded(record.journal))
        return Result(model, policy, evaluations, read_result(record.folder / "result.json"), record.folder)

    def test(self, model: nn.Module, policy: Policy, reference: nn.Module | None = None) -> dict[str, float]:
        """Metrics of all networks on the search split and, once, on the test split.

        If the test fails, the network is saved first. ``reference``: the original after further training.
        """
        record, model = self.record, model.to(self.record.task.device)
        try:
            scores = record.once("test", partial(self._scores, model, reference))
        except DataError as error:
            bundle.save_weights(model, record.folder / "model.safetensors")
            policy.save(record.folder / "policy.json")
            bundle.seal(record.folder)
            raise DataError(
                f"{str(error).rstrip('.')}. The network is finished and saved in {record.folder} (amc.load reads it), "
                "but it is not tested: repair the data and continue with --resume."
            ) from error
        record.step(1.0, f"{record.task.objective.name} {100 * scores['final_test']:.2f} % on the test split")
        return dict(scores)

    def _scores(self, model: nn.Module, reference: nn.Module | None) -> dict[str, float]:
        """Metrics by network and split."""
        record, scores = self.record, dict[str, float]()
        for part, split in (("search", record.task.splits.search), ("test", record.task.splits.test)):
            scores[f"original_{part}"] = record.memo.original_score(part, split)[1]
            scores[f"final_{part}"] = evaluate(model, record.task, split)[1]
            if reference is not None:
                scores[f"trained_original_{part}"] = evaluate(reference, record.task, split)[1]
        if record.config.int8 and (record.folder / INT8).exists():
            scores["int8_test"] = onnx_metric(record.folder / INT8, record.task.objective, record.task.splits.test)
        return scores

    def deliver(
        self, model: nn.Module, policy: Policy, evaluations: Sequence[Evaluation], summary: dict[str, Any]
    ) -> Result:
        """Write the rest of the bundle. The reports are made from result.json, so they come last."""
        record = self.record
        from amc.reports import write_reports

        bundle.save_weights(model, record.folder / "model.safetensors")
        policy.save(record.folder / "policy.json")
        write_json(record.folder / "result.json", summary)
        write_reports(record.folder)
        bundle.seal(record.folder)
        sweep(record.folder)
        record.journal.append("done")
        drop_checkpoints(record)
        return Result(model, policy, tuple(evaluations), summary, record.folder)
