"""The result of an evaluation: a score, or the outcome of a race with the incumbent."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Score:
    """Mean of the objective of the search, and mean metric, over the search split.

    Both are estimates if only a ``share`` of the split was evaluated.
    """

    loss: float
    """Mean of the objective of the search (`amc.evaluation.settings.SearchObjective`)."""
    metric: float
    """Mean metric, in [0, 1]."""
    share: float = 1.0
    """Share of the search split's samples that were evaluated."""
    rejected: bool = False
    """Whether the policy lost a race before all samples were evaluated."""


@dataclass(frozen=True)
class Race:
    """A policy against the incumbent, both on the same ``share`` of the search split's samples.

    >>> race = Race(loss=0.25, metric=0.75, incumbent_loss=0.5, incumbent_metric=0.5, share=0.5, rejected=False)
    >>> race.score(Score(loss=0.5, metric=0.5))
    Score(loss=0.25, metric=0.75, share=0.5, rejected=False)
    """

    loss: float
    metric: float
    incumbent_loss: float
    incumbent_metric: float
    share: float
    rejected: bool

    def score(self, incumbent: Score, handicap: float = 1.0) -> Score:
        """The policy's estimated score, given the score of the ``incumbent``.

        The incumbent's loss is scaled by the ratio of the two losses in the race if both are above 0, and otherwise
        shifted by their difference. A rejected policy's loss, times ``handicap``, is at least the incumbent's.
        """
        loss, most = incumbent.loss + self.loss - self.incumbent_loss, 1.0
        if self.loss >= 0 and min(self.incumbent_loss, incumbent.loss) > 0:
            loss = incumbent.loss * self.loss / self.incumbent_loss
        if self.rejected:
            loss = max(loss, incumbent.loss / handicap)
            most = 1.0 if handicap > 1 else incumbent.metric
        metric = min(max(incumbent.metric + self.metric - self.incumbent_metric, 0.0), most)
        return Score(loss, metric, self.share, self.rejected)
