"""The policies that may be chosen: the settings of every site, exact costs and limits."""

from amc.space.budget import Budget, Space, format_cost, parse_limit
from amc.space.policy import Policy, fingerprint
from amc.space.resources import CostModel, FileLayout, ResourceModel, StoredTensor
from amc.space.sites import Choice, PolicyGrid, Setting, SiteSettings, frozen_setting, numeric_sites, ranked_site

__all__ = [
    "Budget",
    "Choice",
    "CostModel",
    "FileLayout",
    "Policy",
    "PolicyGrid",
    "ResourceModel",
    "Setting",
    "SiteSettings",
    "Space",
    "StoredTensor",
    "fingerprint",
    "format_cost",
    "frozen_setting",
    "numeric_sites",
    "parse_limit",
    "ranked_site",
]
