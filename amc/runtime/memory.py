"""How much memory there is, and how it is shared out: no stage may hold more than fits.

A quarter of the limit each goes to the sums of one pass over the calibration split, to the moments that are kept, and
to the activations of one batch; the rest is for the networks themselves and what solving takes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from safetensors.torch import load_file, save_file
from torch import Tensor

from amc.runtime.files import replacing

GIB = 1 << 30
T = TypeVar("T")


@dataclass(frozen=True)
class Memory:
    """A limit in bytes, and its shares."""

    limit: int

    @classmethod
    def of(cls, gib: float | None) -> Memory:
        """So many GiB; None: half of what this machine, or the container, has."""
        return cls(int(gib * GIB) if gib else installed() // 2)

    @property
    def share(self) -> int:
        """Bytes for each of: a pass's sums, the moments kept, a batch's activations."""
        return self.limit // 4

    def batch(self, sample: int, most: int) -> int:
        """How many samples may be in the network at once when one holds ``sample`` bytes of activations."""
        return max(1, min(most, self.share // max(1, sample)))


def cache_room(policy: int, memory: Memory | None, most: int) -> int:
    """Bytes for a cache of solutions, when those of one policy have ``policy`` bytes.

    16 MiB, or four policies where they are larger, but at most ``most`` bytes and a sixteenth of the limit.

    >>> cache_room(300_000, None, 256 << 20) >> 20, cache_room(40 << 20, None, 256 << 20) >> 20
    (16, 160)
    """
    room = max(16 << 20, min(most, 4 * policy))
    return min(room, memory.share // 4) if memory else room


def installed() -> int:
    """Bytes of memory that this process may count on at most."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            found = min(found, int(Path(path).read_text(encoding="ascii")))
        except (OSError, ValueError):
            continue
    return found


class SpillStore(Mapping[str, T]):
    """Values by name, in memory as long as they fit, then in files that are mapped when they are read.

    The files are temporary ones of ``folder`` (`amc.runtime.files.sweep` removes them); without a folder all
    stay in memory.
    """

    def __init__(
        self,
        tensors: Callable[[T], dict[str, Tensor]],
        restored: Callable[[dict[str, Tensor]], T],
        most: int | None = None,
        folder: Path | None = None,
    ) -> None:
        """``tensors`` takes a value apart, ``restored`` puts it together; ``most`` bytes stay in memory."""
        self._tensors, self._restored = tensors, restored
        self._most, self._folder = most, folder
        self._held: dict[str, T] = {}
        self._files: dict[str, Path] = {}
        self._bytes = 0

    def put(self, name: str, value: T) -> None:
        """Keep a value under a new name."""
        tensors = self._tensors(value)
        size = sum(t.numel() * t.element_size() for t in tensors.values())
        if self._folder is None or self._most is None or self._bytes + size <= self._most:
            self._held[name] = value
            self._bytes += size
            return
        path = self._folder / f".spilled-{len(self._files)}.{os.getpid()}.tmp"
        with replacing(path) as temporary:
            save_file({key: t.contiguous() for key, t in tensors.items()}, temporary)
        self._files[name] = path

    @property
    def filed(self) -> int:
        """How many values are in files."""
        return len(self._files)

    def __getitem__(self, name: str) -> T:
        return self._restored(load_file(self._files[name])) if name in self._files else self._held[name]

    def __iter__(self) -> Iterator[str]:
        yield from (*self._held, *self._files)

    def __len__(self) -> int:
        return len(self._held) + len(self._files)

    def __contains__(self, name: object) -> bool:
        return name in self._held or name in self._files
