"""The settings of a run: one tree of frozen pydantic models for Python, YAML and the command line."""

from amc.config.base import AUTO, Auto, unless_auto
from amc.config.command import command_line
from amc.config.files import from_run, from_yaml, merge, read_yaml
from amc.config.finetune import FinetuneConfig
from amc.config.flags import Option, checked, options
from amc.config.recipes import RECIPES, Recipe
from amc.config.renamed import current, renamed_flags
from amc.config.secrets import masked, public
from amc.config.settings import BudgetConfig, Config, DataConfig, ModelConfig, SearchConfig
from amc.config.training import TrainConfig
from amc.config.tree import binding, from_dict, to_dict
from amc.config.values import convert, shown

__all__ = [
    "AUTO",
    "RECIPES",
    "Auto",
    "BudgetConfig",
    "Config",
    "DataConfig",
    "FinetuneConfig",
    "ModelConfig",
    "Option",
    "Recipe",
    "SearchConfig",
    "TrainConfig",
    "binding",
    "checked",
    "command_line",
    "convert",
    "current",
    "from_dict",
    "from_run",
    "from_yaml",
    "masked",
    "merge",
    "options",
    "public",
    "read_yaml",
    "renamed_flags",
    "shown",
    "to_dict",
    "unless_auto",
]
