"""Where and with what a result was made."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import platform
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

_PACKAGES = (
    "torch",
    "torchvision",
    "onnx",
    "onnxruntime",
    "optuna",
    "stable-baselines3",
    "gymnasium",
    "numpy",
)


def environment() -> dict[str, Any]:
    """CPU, cores, threads and versions."""
    versions = {}
    for package in ("amc-compress", *_PACKAGES):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": versions,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def runtime_version() -> str:
    """The runtime that latency is measured on."""
    return f"ONNX Runtime {metadata.version('onnxruntime')}"


@cache
def code_version() -> str:
    """A digest of this package's own source files: what one version has computed another need not believe."""
    sha, root = hashlib.sha256(), Path(__file__).parent.parent
    for path in sorted(root.rglob("*.py")):
        sha.update(f"{path.relative_to(root)}:".encode() + path.read_bytes())
    return sha.hexdigest()[:32]


def library_versions(packages: Sequence[str] = ("torch", "torchvision", "timm", "numpy")) -> dict[str, str]:
    """What computes: torch and the libraries that networks come from, where they are installed."""
    found = {}
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def load() -> float:
    """How many processes wanted a core over the last minute."""
    return os.getloadavg()[0]


def cpu_name() -> str:
    """The CPU's name, with the vector instructions that matter to latency."""
    fields = _cpu()
    if not fields:
        return platform.processor() or platform.machine()
    flags = cpu_flags()
    wide = [f for f in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm") if f in flags]
    return f"{fields.get('model name', platform.machine())} ({', '.join(wide) or 'no AVX2'})"


def cpu_flags() -> frozenset[str]:
    """The instruction sets that the CPU has, as Linux names them; empty elsewhere."""
    fields = _cpu()
    return frozenset((fields.get("flags") or fields.get("Features", "")).split())


def vector_width(flags: frozenset[str]) -> int:
    """Channels that ONNX Runtime computes at once on a CPU with these instruction sets.

    >>> vector_width(frozenset({"avx2", "avx512f"})), vector_width(frozenset({"avx2"})), vector_width(frozenset())
    (16, 8, 8)
    """
    return 16 if "avx512f" in flags else 8


def _cpu() -> dict[str, str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
