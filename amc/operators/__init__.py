"""Operators: the kinds of compression. Each is one file and one entry in the registry."""

from amc.operators.bits import Bits, BitsSetting
from amc.operators.branches import Branches, RemovedBranch
from amc.operators.channels import Channels, ChannelSetting, legal_widths, width_of, widths_of
from amc.operators.compose import PolicyApplier, apply_settings, cost_model, offered_sites, recorded_settings
from amc.operators.operator import (
    Applier,
    CompressionOperator,
    ErrorMeasures,
    NetworkFacts,
    PolicySetting,
    SettingBounds,
)
from amc.operators.policy import Policy, fingerprint, make_policy
from amc.operators.registry import OPERATORS, Operators, load_operators, operator_of, owner_of

__all__ = [
    "OPERATORS",
    "Applier",
    "Bits",
    "BitsSetting",
    "Branches",
    "ChannelSetting",
    "Channels",
    "CompressionOperator",
    "ErrorMeasures",
    "NetworkFacts",
    "Operators",
    "Policy",
    "PolicyApplier",
    "PolicySetting",
    "RemovedBranch",
    "SettingBounds",
    "apply_settings",
    "cost_model",
    "fingerprint",
    "legal_widths",
    "load_operators",
    "make_policy",
    "offered_sites",
    "operator_of",
    "owner_of",
    "recorded_settings",
    "width_of",
    "widths_of",
]
