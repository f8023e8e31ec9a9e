"""The commands of the command line, one file each."""

from amc.commands.batch import BATCH, STATUS
from amc.commands.cache import CACHE
from amc.commands.command import Command
from amc.commands.completion import COMPLETION
from amc.commands.doctor import DOCTOR
from amc.commands.evaluate import EVALUATE
from amc.commands.init import INIT
from amc.commands.inspect import INSPECT
from amc.commands.list import LIST, SEARCHERS
from amc.commands.measure import MEASURE
from amc.commands.profile import PROFILE
from amc.commands.search import SEARCH
from amc.commands.train import TRAIN

_ALL = (
    SEARCH, INIT, TRAIN, INSPECT, EVALUATE, MEASURE, PROFILE, BATCH, STATUS, LIST, CACHE, DOCTOR, COMPLETION, SEARCHERS,
)  # fmt: skip
COMMANDS = {command.name: command for command in _ALL}

__all__ = ["COMMANDS", "Command"]
