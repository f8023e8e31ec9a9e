"""`amc cache`."""

from __future__ import annotations

import argparse
from pathlib import Path

from amc.commands.command import Command
from amc.commands.show import table, terminal


def _add_cache(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folder", metavar="DIR", help="another folder than the user's own")
    parser.add_argument("--clear", action="store_true", help="remove everything that is kept")


def _cache(parsed: argparse.Namespace) -> int:
    from amc.reports.human import size
    from amc.runtime.cache import Cache, cache_folder

    cache = Cache(Path(parsed.folder) if parsed.folder else cache_folder())
    if parsed.clear:
        print(f"{cache.folder}: {size(cache.clear())} freed")
        return 0
    kinds: dict[str, list[int]] = {}
    for entry in cache.entries():
        kinds.setdefault(entry.kind, []).append(entry.size)
    if kinds:
        rows = [[kind, str(len(sizes)), size(sum(sizes))] for kind, sizes in sorted(kinds.items())]
        terminal().print(table(["kind", "entries", "size"], rows))
    print(f"{cache.folder}: {size(sum(map(sum, kinds.values())))} of at most {size(cache.limit)}")
    return 0


CACHE = Command(
    "cache",
    "what is kept for runs to share, and clearing it",
    _add_cache,
    _cache,
    """examples:
  amc cache                                       what is kept, and how large it is
  amc cache --clear
$AMC_CACHE names the folder, $AMC_CACHE_BYTES the most that it may hold (2 GiB).""",
)
