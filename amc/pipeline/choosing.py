"""From the evaluations of a search to one policy: a shortlist, refined, trained briefly and compared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from amc.evaluation.cached import refined_score
from amc.evaluation.evaluator import Evaluator
from amc.evaluation.reward import Evaluation
from amc.evaluation.score import Score
from amc.latency.constraint import LatencyConstraint
from amc.pipeline.record import Record
from amc.pipeline.recovering import LOSSES, recover
from amc.space.budget import Space
from amc.space.sites import Choice, frozen_setting
from amc.task import evaluate

SPARE = 3
"""Number of policies measured in addition to the candidates, because some may be too slow."""


@dataclass(frozen=True)
class Shortlist:
    """The policies from which one is chosen."""

    evaluations: Sequence[Evaluation]
    obstacle: str | None = None
    """Why no policy meets the limit on latency; None if one does."""


class TrialProgress:
    """Shows the progress of the candidates' short trainings, and records their losses at regular steps."""

    def __init__(self, record: Record, choice: Choice, index: int, count: int) -> None:
        """``index`` is that of the candidate, of ``count``."""
        self._record, self._choice, self._index, self._count, self._recorded = record, choice, index, count, 0

    def __call__(self, done: float, loss: float) -> None:
        """``done`` is the share of this candidate's training that is done."""
        self._record.step((self._index + done) / self._count)
        if int(LOSSES * done) > self._recorded and math.isfinite(loss):
            self._recorded = int(LOSSES * done)
            self._record.journal.append("trial-training", choice=list(self._choice), done=round(done, 4), loss=loss)


class Choosing:
    """Chooses one of the policies that a search has evaluated."""

    def __init__(self, record: Record) -> None:
        self.record = record

    def shortlist(
        self, found: Sequence[Evaluation], space: Space, latency: LatencyConstraint | None
    ) -> Shortlist | None:
        """The best few policies. With a limit on latency, only those that meet it when measured; None: search again."""
        record = self.record
        count = max(record.config.search.refine, record.config.finetune.candidates)
        best = best_first(found)
        if latency is None:
            return Shortlist(best[:count])
        ranked = [e.choice for e in best]
        good = latency.fast_enough(ranked, count + SPARE, record.step)
        if good:
            return Shortlist([e for e in best if e.choice in good][:count])
        obstacle = latency.search_again(space, latency.expected_within(ranked, count + SPARE))
        if obstacle is None:
            record.monitor.say("all of the best networks are over the limit on latency: searching again")
            return None
        record.monitor.say(f"no network is within the limit on latency, and {obstacle}: the fastest is taken")
        closest = latency.closest(ranked)
        return Shortlist([e for e in best if e.choice == closest], obstacle)

    def choose(self, found: Sequence[Evaluation], evaluator: Evaluator) -> tuple[Choice, list[dict[str, Any]]]:
        """Refine the best policies, fine-tune the best of those briefly, and take the winner.

        Scores before training do not predict the winner. Without training, the best refined policy is taken.
        """
        record = self.record
        refined = self._refine(found, evaluator)
        best = sorted(refined, key=lambda choice: (-refined[choice].metric, refined[choice].loss))
        best = best[: record.config.finetune.candidates]
        finetune = record.config.finetune
        if record.epochs == 0 or finetune.trial_share == 0 or len(best) == 1:
            return best[0], [_candidate(c, refined[c], None, i == 0) for i, c in enumerate(best)]
        scores: dict[Choice, Score] = {}
        left = best
        for count, share in rungs(len(best), finetune.trial_share, finetune.halving):
            left = left[:count]
            tried = self._try(left, share, evaluator)
            left = sorted(left, key=lambda choice: (-tried[choice].metric, tried[choice].loss))
            scores |= tried
        return left[0], [_candidate(c, refined[c], scores[c].metric, c == left[0]) for c in best]

    def _try(self, candidates: Sequence[Choice], share: float, evaluator: Evaluator) -> dict[Choice, Score]:
        """The candidates' scores after a ``share`` of the training, each starting from its pruned network."""
        record = self.record
        first = record.config.finetune.trial_share
        known = {(_choice(r), r.get("share", first)): Score(r["loss"], r["metric"])
                 for r in record.journal.records("trial")}  # fmt: skip
        scores: dict[Choice, Score] = {}
        for index, choice in enumerate(candidates):
            if (choice, share) not in known:
                model = recover(record, evaluator, choice, evaluator.pruned(choice), share * record.epochs,
                                progress=TrialProgress(record, choice, index, len(candidates)))  # fmt: skip
                loss, metric = evaluate(model, record.task, record.task.splits.search)
                longer = {} if share == first else {"share": share}
                record.journal.append("trial", choice=list(choice), loss=loss, metric=metric, **longer)
                known[choice, share] = Score(loss, metric)
            scores[choice] = known[choice, share]
            top = max(score.metric for score in scores.values())
            record.step((index + 1) / len(candidates),
                        f"best {100 * top:.2f} % after {100 * share:.0f} % of the training")  # fmt: skip
        return scores

    def _refine(self, best: Sequence[Evaluation], evaluator: Evaluator) -> dict[Choice, Score]:
        """The best policies with their scores as refined networks."""
        record = self.record
        known = {_choice(r): Score(r["loss"], r["metric"]) for r in record.journal.records("refined")}
        for index, found in enumerate(best):
            if found.choice not in known:
                score = known[found.choice] = refined_score(evaluator, record.memo, found.choice)
                record.journal.append("refined", choice=list(found.choice), loss=score.loss, metric=score.metric)
            record.step((index + 1) / len(best), "refining the best policies")
        return {e.choice: known[e.choice] for e in best}


def rungs(candidates: int, share: float, halving: bool) -> list[tuple[int, float]]:
    """The rungs of the comparison: how many candidates are trained, and for which share of the training.

    Successive halving (Jamieson & Talwalkar 2016, arXiv:1502.07943, algorithm 1): in the next rung, the better half is
    trained for twice as long; the last rung compares two. Deviation: every training starts from the pruned network,
    because its learning rates form a complete cycle.

    >>> rungs(6, 0.02, halving=True), rungs(3, 0.1, halving=False)
    ([(6, 0.02), (3, 0.04), (2, 0.08)], [(3, 0.1)])
    """
    found = [(candidates, share)]
    while halving and found[-1][0] > 2 and 2 * found[-1][1] <= 1:
        found.append((math.ceil(found[-1][0] / 2), 2 * found[-1][1]))
    return found


def best_first(found: Sequence[Evaluation]) -> list[Evaluation]:
    """The evaluations that did not fail, best first. Ties in reward are broken by the loss."""
    return sorted((e for e in found if e.error is None), key=lambda e: (-e.reward, e.loss))


def _choice(record: Mapping[str, Any]) -> Choice:
    """The policy of a journal's record."""
    return tuple(frozen_setting(setting) for setting in record["choice"])


def _candidate(choice: Choice, before: Score, after: float | None, chosen: bool) -> dict[str, Any]:
    return {"choice": list(choice), "before": before.metric, "after": after, "chosen": chosen}
