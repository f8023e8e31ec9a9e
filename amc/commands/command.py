"""What a command is to the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

NOT_MET = 3
"""Exit code of a run or a batch with a network that does not meet its limit on latency."""


@dataclass(frozen=True)
class Command:
    """One command. Its module is imported to parse any command line, so heavy imports are inside ``run``."""

    name: str
    summary: str
    add: Callable[[argparse.ArgumentParser], None]
    """Adds its options."""
    run: Callable[[argparse.Namespace], int]
    """Does it; gives the exit code. Raises AmcError for the user's mistakes."""
    epilog: str = ""
    """Examples."""
