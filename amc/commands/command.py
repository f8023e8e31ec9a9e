"""What a command is to the command line."""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

NOT_MET = 3
"""Exit code of a run or a batch with a network that does not meet its limit on latency."""


STDOUT = "-"
"""What ``--json`` is where its document goes to stdout and not into a file."""


class Answer(ABC):
    """What a command has found out: printed for people, or as one JSON document."""

    @property
    def code(self) -> int:
        """The exit code."""
        return 0

    @abstractmethod
    def show(self) -> None:
        """Print it on stdout, for people."""

    @abstractmethod
    def document(self) -> Any:
        """What ``--json`` prints: dictionaries, lists, texts, numbers and None."""


class Text(Answer):
    """Lines for people and for other programs as they are, such as a script; there is no JSON of them."""

    def __init__(self, text: str) -> None:
        self._text = text

    def show(self) -> None:
        print(self._text)

    def document(self) -> Any:
        return self._text


@dataclass(frozen=True)
class Command:
    """One command. Its module is imported to parse any command line, so heavy imports are inside ``run``."""

    name: str
    summary: str
    add: Callable[[argparse.ArgumentParser], None]
    """Adds its options."""
    run: Callable[[argparse.Namespace], Answer]
    """Does it. Raises AmcError for the user's mistakes."""
    epilog: str = ""
    """Examples."""
    main: tuple[str, ...] = ()
    """The options that ``--help`` shows, where ``--help-all`` shows more; empty: all."""
    json: bool = True
    """Whether ``--json`` is an option of it."""
