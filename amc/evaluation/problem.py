"""The problem as searchers see it: legal policies, their exact costs, and what one scores.

Every evaluation is journalled as it comes and never done twice. A search that was interrupted is simply run
again: with the same seed it proposes the same policies, and the journal answers for those it holds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from amc.errors import AmcError, BundleError, ConfigError, first_line, is_out_of_memory
from amc.evaluation.backend import Backend
from amc.evaluation.latency_weight import LatencyWeight
from amc.evaluation.reward import Evaluation, Reward
from amc.evaluation.reward import error as error_reward
from amc.evaluation.score import Score
from amc.graph.sites import SiteFeatures
from amc.runtime.journal import Journal
from amc.space.budget import Space
from amc.space.sites import Choice, Setting, frozen_setting

Observer = Callable[["Problem", Evaluation], None]
"""Told of every proposal to a problem, and its evaluation."""


@dataclass(frozen=True)
class StudyPlace:
    """Where a searcher that keeps a study of its own keeps it."""

    url: str
    """A file, or the URL of a database."""
    name: str
    identity: str = ""
    """Of the network, the data and the search: what is found is of use only where it is the same."""
    shared: bool = False
    """Whether other processes work on the same study."""


class Problem:
    """Legal policies under a budget, and their evaluation."""

    def __init__(
        self,
        space: Space,
        features: Sequence[SiteFeatures],
        backend: Backend,
        reward: Reward = error_reward,
        journal: Journal | None = None,
        observer: Observer | None = None,
        study: StudyPlace | None = None,
        races: bool = True,
        kind: str = "evaluation",
        latency_weight: LatencyWeight | None = None,
    ) -> None:
        """``backend`` evaluates. ``races``: a policy is compared with the incumbent where the backend can do that.
        ``kind`` names the evaluations in the journal. ``latency_weight``: what is compared is the loss times its
        factor, and so is the reward; costs must hold ``latency``.
        """
        self.space, self.latency_weight = space, latency_weight
        self.study = study
        self.features = tuple(features)
        self.proposals = 0
        self.backend, self._reward, self._races = backend, reward, races and backend.races
        self._journal = journal or Journal(None)
        self._observer = observer
        self._kind = kind
        self._known = {e.choice: e for e in recorded(self._journal, kind)}
        # what a resumed search may see is what it has proposed anew, or it would not repeat itself
        self._proposed: dict[Choice, Evaluation] = {}

    def evaluate(self, choice: Sequence[Setting]) -> Evaluation:
        """Score a policy. Raises ValueError when it is not legal or over budget: that is the searcher's mistake."""
        policy = self._checked(choice)
        if policy not in self._known:
            evaluation = self._evaluate(policy)
            self._remember(evaluation)
        return self._propose(policy)

    def learn(self, evaluation: Evaluation) -> None:
        """Take over what another process has found. Raises ValueError when it is not of this problem."""
        policy = self._checked(evaluation.choice)
        if policy not in self._known:
            self._remember(evaluation)
        self._propose(policy)

    def _checked(self, choice: Sequence[Setting]) -> Choice:
        """The policy in the space's own settings. Raises ValueError."""
        space = self.space
        if not space.is_legal(choice):
            raise ValueError(f"the policy {tuple(choice)} is not legal: a site of it has no such setting")
        policy = space.choice(space.positions(choice))
        if not space.fits([policy])[0]:
            raise ValueError(f"the policy {policy} is over the budget {dict(space.limits)}")
        return policy

    def _remember(self, evaluation: Evaluation) -> None:
        self._journal.append(self._kind, **to_record(evaluation), time=time.time())
        self._known[evaluation.choice] = evaluation

    def _propose(self, policy: Choice) -> Evaluation:
        self.proposals += 1
        found = self._proposed[policy] = self._known[policy]
        if self._observer:
            self._observer(self, found)
        return found

    def under(self, limits: Mapping[str, float]) -> Problem:
        """The same problem under other limits, to learn from: what is evaluated there is no candidate here.

        It is journalled apart, and counts among this problem's proposals.
        """
        space = replace(self.space, limits=dict(limits))
        return Problem(
            space, self.features, self.backend, self._reward, self._journal, self._count, None, self._races,
            "other-evaluation", self.latency_weight,
        )  # fmt: skip

    def _count(self, other: Problem, evaluation: Evaluation) -> None:
        """Count a proposal to the ``other`` problem, which is `under` other limits."""
        self.proposals += 1
        if self._observer:
            self._observer(self, evaluation)

    def memo(self, key: Any, find: Callable[[], Any]) -> Any:
        """What searches of this network find alike at every budget: found by the first of them that share a cache.

        ``key`` and what is found are plain values.
        """
        return self.backend.memo(key, find)

    def announce(self, choices: Sequence[Choice]) -> None:
        """Say which policies come next: where there are many workers, they begin with all of them at once."""
        policies = dict.fromkeys(tuple(choice) for choice in choices)
        self.backend.announce([policy for policy in policies if policy not in self._known])

    def _evaluate(self, policy: Choice) -> Evaluation:
        costs = self.space.costs(policy)
        start = time.perf_counter()
        try:
            score = self._scored(policy, costs)
            if not math.isfinite(score.loss):
                raise ArithmeticError(f"the loss is {score.loss}")
            costs |= self.backend.measure(policy)
        except (AmcError, OSError, MemoryError):
            raise
        except Exception as failure:  # one broken policy must not end a search of hours; it is shown
            if is_out_of_memory(failure):  # that says nothing of the policy
                raise MemoryError(first_line(failure)) from failure
            reason = first_line(failure)
            return Evaluation(policy, math.inf, 0.0, costs, time.perf_counter() - start, reason)
        seconds = time.perf_counter() - start
        evaluation = Evaluation(
            policy, score.loss, score.metric, costs, seconds, share=score.share, rejected=score.rejected
        )
        return replace(evaluation, reward=self._rewarded(evaluation))

    def _factor(self, costs: Mapping[str, float]) -> float:
        """What a loss counts with these costs."""
        return self.latency_weight.factor(costs) if self.latency_weight else 1.0

    def _scored(self, policy: Choice, costs: Mapping[str, float]) -> Score:
        """By a race with the best policy so far, if there is one."""
        good = [e for e in self._proposed.values() if e.error is None and not e.rejected]
        if not self._races or not good:
            return self.backend.score(policy)
        incumbent = min(good, key=lambda e: e.loss * self._factor(e.costs))
        handicap = self._factor(costs) / self._factor(incumbent.costs)
        race = self.backend.race(policy, incumbent.choice, handicap)
        return race.score(Score(incumbent.loss, incumbent.metric), handicap)

    def _rewarded(self, evaluation: Evaluation) -> float:
        try:
            reward = float(self._reward(evaluation))
        except MemoryError:
            raise
        except Exception as failure:
            raise ConfigError(f"the reward fails: {type(failure).__name__}: {failure}") from failure
        if not math.isfinite(reward):
            raise ConfigError(f"the reward of a policy is {reward}, but must be a finite number.")
        return reward * self._factor(evaluation.costs)

    def site_error(self, site: int, setting: Setting) -> float:
        """An estimate, without an evaluation, of what one site's setting costs in accuracy; 0 at its full setting.

        Where there is none, what is cut counts: the share of the site's size that goes.
        """
        found = self.backend.site_error(site, setting)
        own = self.space.sites[site]
        return 1 - own.sizes[own.settings.index(setting)] / own.sizes[-1] if found is None else found

    def cost(self, evaluation: Evaluation) -> float:
        """The share of the budget that a policy uses, of the limit that it comes closest to."""
        return max(evaluation.costs[name] / limit for name, limit in self.space.limits.items())

    def front(self) -> list[Evaluation]:
        """The policies that no other beats in both reward and cost, the cheapest first."""
        ranked = sorted(
            (e for e in self._proposed.values() if e.error is None and not e.rejected),
            key=lambda e: (self.cost(e), -e.reward),
        )
        found: list[Evaluation] = []
        for evaluation in ranked:
            if not found or evaluation.reward > found[-1].reward:
                found.append(evaluation)
        return found

    @property
    def evaluations(self) -> list[Evaluation]:
        """All distinct evaluations, in the order in which they were first proposed."""
        return list(self._proposed.values())

    def best(self, count: int | None = None) -> list[Evaluation]:
        """The best distinct policies, the best first, or all; equal rewards are told apart by the loss.

        Scores of races are estimates; who lost is no better than the best was then.
        """
        good = [e for e in self._proposed.values() if e.error is None]
        return sorted(good, key=lambda e: (-e.reward, e.loss))[:count]


def recorded(journal: Journal, kind: str = "evaluation") -> Iterator[Evaluation]:
    """The evaluations in a journal. Raises BundleError."""
    return map(from_record, journal.records(kind))


def to_record(evaluation: Evaluation) -> dict[str, object]:
    """An evaluation as plain values."""
    failed = evaluation.error is not None
    return {
        "choice": list(evaluation.choice),
        "loss": None if failed else evaluation.loss,
        "metric": None if failed else evaluation.metric,
        "costs": dict(evaluation.costs),
        "reward": None if failed else evaluation.reward,
        "seconds": round(evaluation.seconds, 6),
        "share": evaluation.share,
        "lost": evaluation.rejected,
        "error": evaluation.error,
    }


def from_record(record: Mapping[str, Any]) -> Evaluation:
    """The evaluation in plain values. Raises BundleError."""
    try:
        choice = tuple(frozen_setting(setting) for setting in record["choice"])
        costs = {str(name): float(value) for name, value in record["costs"].items()}
        seconds, failed = float(record["seconds"]), record.get("error")
        if failed is not None:
            return Evaluation(choice, math.inf, 0.0, costs, seconds, str(failed))
        loss, metric, reward = (float(record[key]) for key in ("loss", "metric", "reward"))
        share = float(record.get("share", 1.0))
        rejected = bool(record.get("lost", share < 1))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise BundleError("the journal holds an evaluation that is damaged: begin the search anew.") from None
    return Evaluation(choice, loss, metric, costs, seconds, None, reward, share, rejected)
