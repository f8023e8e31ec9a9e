"""`amc cache`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amc.commands.command import Answer, Command
from amc.commands.show import table, terminal


def _add_cache(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folder", metavar="DIR", help="another folder than the user's own")
    parser.add_argument("--clear", action="store_true", help="remove everything that is kept")


@dataclass(frozen=True)
class CacheAnswer(Answer):
    """What a cache holds, or what was removed from it."""

    folder: Path
    limit: int
    kinds: Mapping[str, Sequence[int]]
    """Sizes of the entries, by kind."""
    freed: int | None = None
    """Bytes that were removed; None where nothing was to be."""

    @property
    def total(self) -> int:
        """Bytes of all entries."""
        return sum(map(sum, self.kinds.values()))

    def show(self) -> None:
        from amc.reports.human import size

        if self.freed is not None:
            print(f"{self.folder}: {size(self.freed)} freed")
            return
        if self.kinds:
            rows = [[kind, str(len(sizes)), size(sum(sizes))] for kind, sizes in sorted(self.kinds.items())]
            terminal().print(table(["kind", "entries", "size"], rows))
        print(f"{self.folder}: {size(self.total)} of at most {size(self.limit)}")

    def document(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "bytes": self.total,
            "limit": self.limit,
            "freed": self.freed,
            "kinds": {kind: {"entries": len(sizes), "bytes": sum(sizes)} for kind, sizes in self.kinds.items()},
        }


def _cache(parsed: argparse.Namespace) -> CacheAnswer:
    from amc.runtime.cache import Cache, cache_folder

    cache = Cache(Path(parsed.folder) if parsed.folder else cache_folder())
    assert cache.folder is not None
    freed = cache.clear() if parsed.clear else None
    kinds: dict[str, list[int]] = {}
    for entry in cache.entries():
        kinds.setdefault(entry.kind, []).append(entry.size)
    return CacheAnswer(cache.folder, cache.limit, kinds, freed)


CACHE = Command(
    "cache",
    "show or clear what is kept for runs to share",
    _add_cache,
    _cache,
    """examples:
  amc cache                                       what is kept, and how large it is
  amc cache --clear
$AMC_CACHE names the folder, $AMC_CACHE_BYTES the most that it may hold (2 GiB).""",
)
