"""The commands of the command line, one file each."""

from amc.commands.batch import BATCH, STATUS
from amc.commands.cache import CACHE
from amc.commands.command import Command
from amc.commands.evaluate import EVALUATE
from amc.commands.inspect import INSPECT
from amc.commands.list import LIST, SEARCHERS
from amc.commands.measure import MEASURE
from amc.commands.profile import PROFILE
from amc.commands.search import SEARCH
from amc.commands.train import TRAIN

COMMANDS = {
    c.name: c for c in (SEARCH, TRAIN, INSPECT, EVALUATE, MEASURE, PROFILE, BATCH, STATUS, CACHE, LIST, SEARCHERS)
}

__all__ = ["COMMANDS", "Command"]
