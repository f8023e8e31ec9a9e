"""Which channels of a site matter most: criteria, the statistics that they need, and the orders that they give."""

from amc.importance.collectors import COLLECTORS, collect
from amc.importance.criterion import Criterion, Lacking, Need, descending, required
from amc.importance.group import Activations, Norm, Part, Producer, Reader, SiteView
from amc.importance.ranking import check_scores, rank, score, view
from amc.importance.registry import CRITERIA, criteria, criterion_files, load_criterion
from amc.importance.saved import write_ranking
from amc.importance.scope import ScopedPolicy, select
from amc.importance.searched import COMPARED, SEARCH, compared, is_search
from amc.importance.statistics import Statistics

__all__ = [
    "COLLECTORS",
    "COMPARED",
    "CRITERIA",
    "SEARCH",
    "Activations",
    "Criterion",
    "Lacking",
    "Need",
    "Norm",
    "Part",
    "Producer",
    "Reader",
    "ScopedPolicy",
    "SiteView",
    "Statistics",
    "check_scores",
    "collect",
    "compared",
    "criteria",
    "criterion_files",
    "descending",
    "is_search",
    "load_criterion",
    "rank",
    "required",
    "score",
    "select",
    "view",
    "write_ranking",
]
