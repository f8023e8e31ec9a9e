"""``--criterion search``: every site is ranked by the criterion that is best there.

Criteria give orders of different scales, so they are compared by what their orders cost: the estimated error of the
site (`amc.evaluation.site_errors`), as the mean over the widths that it may have. The errors come from moments of the
layers' inputs and one backward pass, so the choice takes no evaluation, and is the same whatever the searcher does.
``search:obs,l1,taylor`` compares the criteria that it names.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from amc.errors import ConfigError
from amc.importance.criterion import Criterion, Need
from amc.importance.group import SiteView

SEARCH = "search"
COMPARED = ("obs", "l1", "l2-mean", "fpgm", "bn-scale", "std-activation", "taylor", "snip")
"""Those that are compared where none are named; the first wins ties."""


def is_search(name: str) -> bool:
    """Whether a name stands for a choice among criteria.

    >>> is_search("search:obs,l1"), is_search("obs")
    (True, False)
    """
    return name == SEARCH or name.startswith(f"{SEARCH}:")


def compared(name: str) -> tuple[str, ...]:
    """The names of the criteria that are compared. Raises ConfigError for fewer than two.

    >>> compared("search:obs, l1")
    ('obs', 'l1')
    """
    if name == SEARCH:
        return COMPARED
    found = tuple(dict.fromkeys(filter(None, (part.strip() for part in name.partition(":")[2].split(",")))))
    if len(found) < 2:
        raise ConfigError(f"--criterion {name} compares criteria: name two at least, as in search:obs,l1.")
    if any(is_search(part) for part in found):
        raise ConfigError(f"--criterion {name}: a search among criteria cannot be one of them.")
    return found


def searched_criterion(name: str, load: Callable[[str], Criterion]) -> Criterion:
    """What is needed for a choice among criteria: all that they need. It ranks nothing itself. Raises ConfigError."""
    needs = frozenset({Need.MOMENTS}).union(*(load(part).needs for part in compared(name)))
    return Criterion(name, "the best of several criteria at every site", "", _unranked, needs, "order")


def _unranked(site: SiteView) -> Tensor:
    raise ConfigError("--criterion search compares orders of other criteria, and gives none by itself.")
