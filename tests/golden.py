"""Pin what runs give: record four small runs once, and hold later code against the record.

    python tests/golden.py record           # writes tests/golden/NAME.json
    python tests/golden.py check [NAME …]   # prints every difference; exit code 1 where there is one

Times, paths and versions are left out. Scores and weights depend on the processor and on the libraries, so a
record says which ones it was made with; a check elsewhere compares only what is exact everywhere (see `portable`).
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
GOLDEN = HERE / "golden"
COMMON = ["--threads", "1", "--device", "cpu", "--precision", "float32", "--seed", "0"]
TABLE = """layer,widths,ms
*,,0.05
conv1,4,0.020
conv1,16,0.080
layer1.0.conv1,4,0.015
layer1.0.conv1,16,0.060
layer2.0.conv1,4,0.010
layer2.0.conv1,32,0.070
layer2.0.conv2,4,0.010
layer2.0.conv2,32,0.070
layer3.0.conv1,4,0.005
layer3.0.conv1,64,0.060
layer3.0.conv2,4,0.005
layer3.0.conv2,64,0.030
"""

LEFT_OUT = {
    "seconds", "latency", "latency_ms", "environment", "stages", "time", "ratio", "ratio_to_final", "out", "cache",
    "original_ms", "final_ms", "notes", "tried", "setting", "in_float", "layers", "amc", "host", "command",
    "sensitivity", "answers", "part",
}  # fmt: skip
"""Keys of result.json and of the journal that differ from run to run, or from machine to machine."""


def amc(*words: str, folder: Path) -> None:
    """Run the command line; its output is shown when it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "amc", *words], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"amc {' '.join(words)} gave {done.returncode}:\n{done.stdout}\n{done.stderr}")


def digits(folder: Path) -> list[Path]:
    amc("search", "--flops", "0.5", "--evaluations", "10", "--finetune-epochs", "1", "--out", "run", *COMMON,
        folder=folder)  # fmt: skip
    return [folder / "run"]


def latency(folder: Path) -> list[Path]:
    """A limit on latency, predicted by a table: nothing that is measured decides."""
    (folder / "table.csv").write_text(TABLE)
    amc("search", "--latency", "0.6", "--latency-model", "table.csv", "--evaluations", "6", "--finetune-epochs", "0",
        "--out", "run", *COMMON, folder=folder)  # fmt: skip
    return [folder / "run"]


def int8(folder: Path) -> list[Path]:
    amc("search", "--params", "0.5", "--int8", "--evaluations", "3", "--finetune-epochs", "0", "--searcher", "spdy",
        "--out", "run", *COMMON, folder=folder)  # fmt: skip
    return [folder / "run"]


def batch(folder: Path) -> list[Path]:
    text = (HERE.parent / "configs" / "batch-digits.yaml").read_text()
    text = text.replace("candidates: 2}", "candidates: 2}\n  device: cpu\n  threads: 1")
    (folder / "batch.yaml").write_text(text)
    amc("batch", "batch.yaml", "--workers", "1", "--out", "runs", folder=folder)
    return sorted(p.parent for p in (folder / "runs").glob("*/result.json"))


RUNS: dict[str, Callable[[Path], list[Path]]] = {"digits": digits, "latency": latency, "int8": int8, "batch": batch}


def found(name: str) -> dict[str, Any]:
    """What the runs of one name give, as plain values."""
    with tempfile.TemporaryDirectory() as folder:
        runs = RUNS[name](Path(folder))
        return {"machine": machine(runs[0]), "runs": {run.name: contents(run) for run in runs}}


def machine(run: Path) -> dict[str, Any]:
    environment = json.loads((run / "result.json").read_text())["environment"]
    versions = {key: environment["versions"].get(key) for key in ("torch", "onnx", "onnxruntime", "numpy", "optuna")}
    return {"cpu": environment["cpu"], **versions}


def contents(run: Path) -> dict[str, Any]:
    result = json.loads((run / "result.json").read_text())
    journal = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    kinds = ("evaluation", "refined", "trial", "test", "recalibrate")
    return {
        "result": without(result),
        "policy": json.loads((run / "policy.json").read_text()),
        "journal": [without(line) for line in journal if line.get("kind") in kinds],
        "weights": sha(run / "model.safetensors"),
        "original.onnx": sha(run / "original.onnx"),
        "model.onnx": sha(run / "model.onnx"),
    }


def without(value: Any) -> Any:
    if isinstance(value, dict):
        plain = {key: without(v) for key, v in value.items() if key not in LEFT_OUT}
        if isinstance(plain.get("int8"), dict):  # which setting is fastest is measured: what it scores, too
            plain["int8"] = sorted(plain["int8"])
        return plain
    return [without(v) for v in value] if isinstance(value, list) else value


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def portable(path: str) -> bool:
    """Whether a value is the same on every machine: what the original costs, and the names of all fields."""
    return "/result/original/" in path and not path.endswith(("/search", "/test"))


def differences(was: Any, now: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(was, dict) and isinstance(now, dict):
        for key in [*was, *(k for k in now if k not in was)]:
            yield from differences(was.get(key, "(nothing)"), now.get(key, "(nothing)"), f"{path}/{key}")
    elif isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        for index, (a, b) in enumerate(zip(was, now, strict=True)):
            yield from differences(a, b, f"{path}/{index}")
    elif was != now:
        yield path, was, now


def check(name: str) -> int:
    was, now = json.loads((GOLDEN / f"{name}.json").read_text()), found(name)
    rows = list(differences(was["runs"], now["runs"]))
    if was["machine"] != now["machine"]:
        print(f"{name}: recorded with {was['machine']}, here it is {now['machine']}: exact values only")
        rows = [row for row in rows if portable(row[0])]
    for path, a, b in rows:
        print(f"{name}{path}: {a!r} -> {b!r}"[:300])
    print(f"{name}: {len(rows)} differences")
    return len(rows)


def main() -> None:
    what, *names = sys.argv[1:] or ["check"]
    if what == "record":
        GOLDEN.mkdir(exist_ok=True)
        for name in names or RUNS:
            (GOLDEN / f"{name}.json").write_text(json.dumps(found(name), indent=1, sort_keys=True) + "\n")
    elif sum(check(name) for name in names or RUNS):
        sys.exit(1)


if __name__ == "__main__":
    main()
