"""Files that amc reads, damaged at random: bytes, values and structure.

What a reader gives may be anything, if it is given at all: that it raises nothing but one line is what is tested, and
that it leaves its folder as it was.
"""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from tests.fuzz.harness import Accepted, plain

BUNDLE = Path(__file__).parent.parent / "data" / "bundle-1"
VALUES = (
    None, True, False, 0, -1, 1, 1.5, -1e308, 2**31, 2**63, 10**30, "", "x", "../../etc/passwd", "a\0b", "\x1b[31m",
    "[/x]",    [], {}, [[]], [0] * 50, {"a": {}}, "NaN", "1" * 5000, float("nan"), float("inf"),
)  # fmt: skip
PIECES = (
    b"\0",
    b"\xff\xfe",
    b"[" * 2000,
    b"{",
    b"}",
    b"\n",
    b"NaN",
    b"1e999",
    b"9" * 5000,
    b"*a",
    b"&a [*a]",
    b"!!python/x",
)

JOURNAL = [
    {"kind": "run", "fingerprint": "a", "config": "b", "splits": {"seed": 0}},
    {"kind": "stage", "name": "inspect", "seconds": 1.5},
    {"kind": "evaluation", "choice": [4, 8], "loss": 1.0, "metric": 0.5, "reward": 0.5, "costs": {"macs": 1.0},
     "seconds": 0.1, "share": 1.0, "lost": False, "error": None, "time": 1.0},
    {"kind": "trial", "choice": [4, 8], "loss": 1.0, "metric": 0.5},
    {"kind": "done"},
]  # fmt: skip
PROGRESS = {"stage": "search", "share": 0.5, "note": "", "began": 1.0, "time": 1.0, "pid": 1, "host": "x"}
PROFILE = {
    "format": "amc-profile", "version": 2, "key": {"cpu": "x"}, "sites": ["a"], "full": [8], "original_ms": 1.0,
    "seconds": 1.0, "samples": [{"widths": [4], "ratio": 0.5, "quiet": 1.0, "original_ms": 1.0, "operators": [0.1]}],
    "operators": [{"name": "n", "kind": "Conv", "inputs": [[0], 3], "outputs": [[1], 0], "branch": -1}],
}  # fmt: skip
TABLE = b"layer,widths,ms\n*,,0.05\nconv1,4,0.02\nconv1,16,0.08\n"


def _readers() -> dict[str, tuple[bytes, Callable[[Path], object]]]:
    """File → its content, and what reads it."""
    import amc
    from amc.batch.status import status
    from amc.config import from_yaml
    from amc.deploy.result import read_result
    from amc.latency.lookup import read_table
    from amc.latency.profile import Profile
    from amc.runtime.journal import Journal
    from amc.task.models import read_state_dict

    def bundle(path: Path) -> object:
        return amc.load(path.parent)

    def journal(path: Path) -> object:
        with Journal(path) as opened:
            return opened.last("done")

    return {
        "policy.json": ((BUNDLE / "policy.json").read_bytes(), amc.Policy.load),
        "config.yaml": ((BUNDLE / "config.yaml").read_bytes(), from_yaml),
        "result.json": ((BUNDLE / "result.json").read_bytes(), read_result),
        "manifest.json": ((BUNDLE / "manifest.json").read_bytes(), bundle),
        "journal.jsonl": (b"".join(json.dumps(r).encode() + b"\n" for r in JOURNAL), journal),
        "progress.json": (json.dumps(PROGRESS).encode(), lambda path: status(path.parent)),
        "profile.json": (json.dumps(PROFILE).encode(), Profile.load),
        "table.csv": (TABLE, read_table),
        "weights.safetensors": (
            (BUNDLE / "model.safetensors").read_bytes(), lambda path: read_state_dict(str(path))
        ),
    }  # fmt: skip


@cache
def readers() -> dict[str, tuple[bytes, Callable[[Path], object]]]:
    """Made once, in the parent process, which imports what they need: a child would take long for it."""
    import amc

    amc.load(BUNDLE)
    return _readers()


def damaged(rng: random.Random, folder: Path) -> None:
    """One file with random damage, read as a user's command would."""
    name = rng.choice(sorted(readers()))
    content, read = readers()[name]
    if name == "manifest.json":
        shutil.copytree(BUNDLE, folder, dirs_exist_ok=True)
    path = folder / name
    path.write_bytes(damaged_bytes(rng, content, name))
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    try:
        read(path)
    finally:
        after = {p.name: p.read_bytes() for p in folder.iterdir()}
        torn = name == "journal.jsonl" and before[name].startswith(after[name])
        if before != after and not torn:
            raise Accepted(f"reading {name} changes its folder")


def damaged_bytes(rng: random.Random, content: bytes, name: str) -> bytes:
    """A file's content with some of its bytes changed, or, by its name, some of its values."""
    if name.endswith((".json", ".jsonl")) and rng.random() < 0.7:
        lines = content.splitlines() if name.endswith(".jsonl") else [content]
        at = rng.randrange(len(lines))
        value = plain(json.loads(lines[at]))
        for _ in range(rng.choice((1, 1, 2, 3))):
            value = changed(rng, value)
        lines[at] = json.dumps(value).encode()
        return b"\n".join(lines) + b"\n"
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 3, 10))):
        at, change = rng.randrange(len(data) + 1), rng.randrange(4)
        if change == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif change == 1:
            data[at:at] = rng.choice(PIECES)
        elif change == 2:
            del data[at : at + rng.choice((1, 4, 50))]
        else:
            data = data[:at] if rng.random() < 0.3 else data + data[at : at + 50]
    return bytes(data)


def changed(rng: random.Random, value: Any) -> Any:
    """A structure with one value in it changed, dropped or added."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        change = rng.randrange(8)
        if change == 0:
            return {k: v for k, v in value.items() if k != key}
        if change == 1:
            return {**value, rng.choice(("x", "[/x]", "\x1b[0m", "")): any_value(rng)}
        return {**value, key: changed(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.7:
        at = rng.randrange(len(value))
        return [*value[:at], changed(rng, value[at]), *value[at + 1 :]]
    return any_value(rng)


def any_value(rng: random.Random) -> Any:
    """A value of no sense, the caller's own: what one case writes into it no other one sees."""
    return copy.deepcopy(rng.choice(VALUES))
