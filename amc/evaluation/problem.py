"""The problem that searchers see: the legal policies, their exact costs, and their scores.

Every evaluation is written to the journal at once and never repeated. An interrupted search is resumed by running it
again: with the same seed it proposes the same policies, and the journal has the results of the earlier ones.
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
"""Called after every proposal, with the problem and the evaluation."""


@dataclass(frozen=True)
class StudyLocation:
    """Where a searcher stores its study."""

    url: str
    """A file, or the URL of a database."""
    name: str
    identity: str = ""
    """Hash of the network, the data and the search: results are valid only for the same identity."""
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
        study: StudyLocation | None = None,
        races: bool = True,
        kind: str = "evaluation",
        latency_weight: LatencyWeight | None = None,
    ) -> None:
        """``races``: compare every policy with the incumbent, if the backend supports it.

        ``kind`` is the kind of journal records. With a ``latency_weight``, losses and rewards are multiplied by its
        factor; the costs must include ``latency``.
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
        # a resumed search must see only what it has proposed again; otherwise it would propose other policies
        self._proposed: dict[Choice, Evaluation] = {}
        self._episodes, self._recorded_episodes = 0, sum(1 for _ in self._journal.records("agent"))

    def evaluate(self, choice: Sequence[Setting], part: str = "") -> Evaluation:
        """Score a policy. ``part`` names the part of the searcher that proposes it, for the report.

        Raises ValueError if the policy is not legal or over budget, which is an error in the searcher.
        """
        policy = self._checked(choice)
        if policy not in self._known:
            evaluation = self._evaluate(policy)
            self._remember(evaluation, part)
        return self._propose(policy)

    def record_episode(self, reward: float, sigma: float | None = None, critic_loss: float | None = None) -> None:
        """Journal an episode of a learning agent, for the report, unless a search that is resumed has done so.

        ``sigma``: standard deviation of the agent's noise; ``critic_loss``: mean over the updates after the episode.
        """
        self._episodes += 1
        if self._episodes > self._recorded_episodes:
            values = {"reward": reward, "sigma": sigma, "critic_loss": critic_loss}
            known = {key: value for key, value in values.items() if value is not None and math.isfinite(value)}
            self._journal.append("agent", episode=self._episodes, **known)

    def learn(self, evaluation: Evaluation) -> None:
        """Add an evaluation by another process. Raises ValueError if its policy is not legal here or over budget."""
        policy = self._checked(evaluation.choice)
        if policy not in self._known:
            self._remember(evaluation)
        self._propose(policy)

    def _checked(self, choice: Sequence[Setting]) -> Choice:
        """The policy in the space's own settings. Raises ValueError."""
        space = self.space
        if not space.is_legal(choice):
            raise ValueError(f"the policy {tuple(choice)} is not legal: it has a setting that its site does not offer")
        policy = space.canonical(space.choice(space.positions(choice)))
        if not space.fits([policy])[0]:
            raise ValueError(f"the policy {policy} is over the budget {dict(space.limits)}")
        return policy

    def _remember(self, evaluation: Evaluation, part: str = "") -> None:
        proposed = {"part": part} if part else {}
        self._journal.append(self._kind, **to_record(evaluation), **proposed, time=time.time())
        self._known[evaluation.choice] = evaluation

    def _propose(self, policy: Choice) -> Evaluation:
        self.proposals += 1
        found = self._proposed[policy] = self._known[policy]
        if self._observer:
            self._observer(self, found)
        return found

    def under(self, limits: Mapping[str, float]) -> Problem:
        """The same problem under other limits, for searchers that learn from it.

        Its evaluations are no candidates here and have their own kind in the journal, but they count as proposals.
        """
        space = replace(self.space, limits=dict(limits))
        return Problem(
            space, self.features, self.backend, self._reward, self._journal, self._count, None, self._races,
            "other-evaluation", self.latency_weight,
        )  # fmt: skip

    def _count(self, other: Problem, evaluation: Evaluation) -> None:
        """Count a proposal to a problem made by `under`."""
        self.proposals += 1
        if self._observer:
            self._observer(self, evaluation)

    def memo(self, key: Any, find: Callable[[], Any]) -> Any:
        """Memoise a result that does not depend on the budget: the first search that shares the cache computes it.

        ``key`` and result are JSON values.
        """
        return self.backend.memo(key, find)

    def announce(self, choices: Sequence[Choice]) -> None:
        """Announce the next proposals, so that a backend with workers can evaluate them in parallel."""
        policies = dict.fromkeys(self.space.canonical(tuple(choice)) for choice in choices)
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
        except Exception as failure:  # one broken policy must not end a long search; its error is recorded
            if is_out_of_memory(failure):  # not the policy's fault
                raise MemoryError(first_line(failure)) from failure
            reason = first_line(failure)
            return Evaluation(policy, math.inf, 0.0, costs, time.perf_counter() - start, reason)
        seconds = time.perf_counter() - start
        evaluation = Evaluation(
            policy, score.loss, score.metric, costs, seconds, share=score.share, rejected=score.rejected
        )
        return replace(evaluation, reward=self._rewarded(evaluation))

    def _factor(self, costs: Mapping[str, float]) -> float:
        """The factor of the loss of a policy with these costs."""
        return self.latency_weight.factor(costs) if self.latency_weight else 1.0

    def _scored(self, policy: Choice, costs: Mapping[str, float]) -> Score:
        """Score a policy by a race with the incumbent, if there is one and races are possible."""
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
            raise ConfigError(f"the reward function fails: {type(failure).__name__}: {failure}") from failure
        if not math.isfinite(reward):
            raise ConfigError(f"the reward of a policy is {reward}, but must be a finite number.")
        return reward * self._factor(evaluation.costs)

    def site_error(self, site: int, setting: Setting) -> float:
        """Estimated error of one site's setting, without an evaluation; 0 at the original's setting.

        Without an estimate by the backend, it is the share of the site's size that the setting removes.
        """
        found = self.backend.site_error(site, setting)
        own = self.space.sites[site]
        return 1 - own.sizes[own.settings.index(setting)] / own.sizes[-1] if found is None else found

    def cost(self, evaluation: Evaluation) -> float:
        """Cost as a share of the limit, for the resource where that share is largest."""
        return max(evaluation.costs[name] / limit for name, limit in self.space.limits.items())

    def front(self) -> list[Evaluation]:
        """The Pareto front of reward and cost, cheapest first."""
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
        """All distinct evaluations, in the order of their first proposals."""
        return list(self._proposed.values())

    def best(self, count: int | None = None) -> list[Evaluation]:
        """The ``count`` best distinct policies, or all, best first. Ties in reward are broken by the loss.

        Scores from races are estimates; a rejected policy is never estimated to be better than its incumbent.
        """
        good = [e for e in self._proposed.values() if e.error is None]
        return sorted(good, key=lambda e: (-e.reward, e.loss))[:count]


def recorded(journal: Journal, kind: str = "evaluation") -> Iterator[Evaluation]:
    """The evaluations in a journal. Raises BundleError."""
    return map(from_record, journal.records(kind))


def to_record(evaluation: Evaluation) -> dict[str, object]:
    """An evaluation as a JSON record."""
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
    """Parse the JSON record of an evaluation. Raises BundleError."""
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
        raise BundleError("the journal holds a damaged evaluation: start the search again.") from None
    return Evaluation(choice, loss, metric, costs, seconds, None, reward, share, rejected)
