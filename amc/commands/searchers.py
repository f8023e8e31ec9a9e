"""`amc searchers`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from amc.commands.command import Command
from amc.commands.show import terminal


def no_options(parser: argparse.ArgumentParser) -> None:
    """No options."""


def _searchers(parsed: argparse.Namespace) -> int:
    from amc.search import searchers

    terminal().print(_two_columns([(s.name, s.summary) for s in searchers().values()]))
    return 0


def _two_columns(rows: Sequence[tuple[str, str]]) -> str:
    wide = max((len(first) for first, _ in rows), default=0)
    return "\n".join(f"{first:<{wide}} {second}" for first, second in rows)


SEARCHERS = Command("searchers", "list the searchers", no_options, _searchers)
