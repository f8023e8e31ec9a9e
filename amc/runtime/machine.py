"""What this machine has, as far as it matters to a run."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from amc.runtime.cache import Cache, cache_folder
from amc.runtime.memory import installed
from amc.runtime.provenance import cpu_flags, cpu_name, load, runtime_version


@dataclass(frozen=True)
class Gpu:
    """A CUDA device."""

    name: str
    memory: int
    """Bytes."""


@dataclass(frozen=True)
class Machine:
    """Facts, without what follows from them."""

    system: str
    python: str
    torch: str
    runtime: str
    """ONNX Runtime and its version."""
    cpu: str
    flags: frozenset[str]
    """Instruction sets, as Linux names them; empty where they are not known."""
    cores: int
    usable: float
    """Cores that this process may use: fewer where it is pinned, or in a container with a limit."""
    threads: int
    """Of torch."""
    load: float
    """Processes that wanted a core over the last minute."""
    memory: int
    """Bytes that this process may count on at most."""
    free_memory: int | None
    """Bytes that are free now; None where that is not known."""
    gpus: tuple[Gpu, ...]
    folder: str
    """The current folder, where runs are put."""
    folder_writable: bool
    free_disk: int
    """Bytes free in the current folder."""
    cache: str
    """The folder of the cache."""
    cache_trouble: str | None
    """Why nothing can be kept there; None where it can."""

    @classmethod
    def here(cls) -> Machine:
        """This machine, now."""
        cache = Cache(cache_folder())
        return cls(
            system=f"{platform.system()} {platform.release()}",
            python=platform.python_version(),
            torch=str(torch.__version__),
            runtime=runtime_version(),
            cpu=cpu_name().partition(" (")[0],
            flags=cpu_flags(),
            cores=os.cpu_count() or 1,
            usable=_usable_cores(),
            threads=torch.get_num_threads(),
            load=load(),
            memory=installed(),
            free_memory=_free_memory(),
            gpus=_gpus(),
            folder=str(Path.cwd()),
            folder_writable=os.access(".", os.W_OK | os.X_OK),
            free_disk=shutil.disk_usage(".").free,
            cache=str(cache.folder),
            cache_trouble=cache.trouble(),
        )

    def has(self, *flags: str) -> bool:
        """Whether the CPU has one of these instruction sets."""
        return not self.flags.isdisjoint(flags)


def _usable_cores() -> float:
    pinned = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return min(float(pinned), int(quota) / int(period))
    except (OSError, ValueError):  # no such file, or "max"
        return float(pinned)


def _free_memory() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        (available,) = (int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError):
        return None
    try:
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return available
    return min(available, max(0, installed() - used))


def _gpus() -> tuple[Gpu, ...]:
    if not torch.cuda.is_available():
        return ()
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return tuple(Gpu(properties.name, properties.total_memory) for properties in found)
