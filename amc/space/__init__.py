"""The space of policies: the settings of every site, exact costs, and limits."""

from amc.space.budget import Budget, Space, format_cost, parse_limit
from amc.space.file_size import Branch, FileLayout, StoredTensor, WeightPlace
from amc.space.resources import CostModel, ResourceModel
from amc.space.sites import Choice, PolicyGrid, Setting, SiteSettings, frozen_setting, numeric_sites, ranked_site

__all__ = [
    "Branch",
    "Budget",
    "Choice",
    "CostModel",
    "FileLayout",
    "PolicyGrid",
    "ResourceModel",
    "Setting",
    "SiteSettings",
    "Space",
    "StoredTensor",
    "WeightPlace",
    "format_cost",
    "frozen_setting",
    "numeric_sites",
    "parse_limit",
    "ranked_site",
]
