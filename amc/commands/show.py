"""Tables on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from amc.errors import without_escapes

if TYPE_CHECKING:
    from rich.console import Console


def terminal() -> Console:
    """Where tables are printed: as wide as the terminal, 120 columns into a file."""
    from rich.console import Console

    class Plain(Console):
        """Shows texts as they are: names are anybody's, and may hold markup or a terminal's escapes."""

        def print(self, *objects: Any, **how: Any) -> None:
            super().print(*(without_escapes(o) if isinstance(o, str) else o for o in objects), **how)

    return Plain(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 120)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Any:
    """A table; all columns but the first are numbers."""
    from rich.table import Table
    from rich.text import Text

    shown = Table(*[columns[0]], box=None, pad_edge=False, header_style="bold")
    for column in columns[1:]:
        shown.add_column(column, justify="right")
    for row in rows:
        shown.add_row(*[Text(without_escapes(cell)) for cell in row])
    return shown
