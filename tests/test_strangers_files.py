"""Files that a stranger has made: links, FIFOs, devices, bombs and wrong values in place of everything that is read."""

import json
import os
import shutil
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import amc
from amc.cli import main
from amc.config import Config, from_yaml
from amc.deploy.export import read_onnx
from amc.errors import AmcError, BundleError, ExportError, ModelError
from amc.latency import Runner
from amc.latency.lookup import read_table
from amc.latency.profile import Profile
from amc.pipeline.original import original_onnx
from amc.pipeline.pipeline import new_folder
from amc.runtime.files import opened, parse_json, read_bytes, read_json
from amc.runtime.journal import Journal, read_records
from amc.runtime.progress import read_progress
from amc.task.models import load_weights, read_state_dict

OLD = Path(__file__).parent / "data" / "bundle-1"


def fifo(path: Path) -> None:
    os.mkfifo(path)


def zero(path: Path) -> None:
    path.symlink_to("/dev/zero")


def closed_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))


def folder(path: Path) -> None:
    path.mkdir()


ODD: list[Callable[[Path], None]] = [fifo, zero, closed_socket, folder]
READERS: dict[str, Callable[[Path], object]] = {
    "policy.json": amc.Policy.load,
    "profile.json": Profile.load,
    "table.csv": read_table,
    "config.yaml": from_yaml,
    "journal.jsonl": read_records,
    "weights.pt": lambda path: read_state_dict(str(path)),
    "weights.safetensors": lambda path: read_state_dict(str(path)),
    "run/journal.jsonl": lambda path: Journal(path),
    "model.onnx": read_onnx,
    "original.onnx": Runner,
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_regular_file_is_one_line_at_once(
    name: str, odd: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    odd(tmp_path / name)
    with pytest.raises(AmcError, match=name) as caught:
        READERS[name](tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_progress_is_none(odd: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    odd(tmp_path / "progress.json")
    assert read_progress(tmp_path) is None


@pytest.mark.parametrize("name", ["manifest.json", "program.json", "model.safetensors", "policy.json"])
@pytest.mark.parametrize("odd", [fifo, zero, folder])
def test_an_odd_file_of_a_bundle(name: str, odd: Callable[[Path], None], tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(OLD, tmp_path / "bundle"))
    (bundle / name).unlink()
    odd(bundle / name)
    with pytest.raises(BundleError, match=r"cannot read|no manifest\.json"):
        amc.load(bundle)


@pytest.mark.parametrize("odd", ODD)
def test_amc_measure_opens_regular_files_only(
    odd: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    odd(Path("odd.onnx"))
    assert main(["measure", "odd.onnx"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("amc: cannot load odd.onnx: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("odd", [*ODD, lambda path: path.symlink_to("manifest.json")])
def test_a_bundle_s_onnx_file_is_a_regular_one(
    odd: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(OLD, "bundle")
    Path("bundle/model.onnx").unlink()
    odd(Path("bundle/model.onnx"))
    assert main(["evaluate", "bundle"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("amc: cannot read bundle/model.onnx: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("odd", [*ODD, lambda path: path.symlink_to("journal.jsonl")])
def test_the_original_of_a_run_is_a_regular_file(
    odd: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with Journal(tmp_path / "journal.jsonl") as journal:
        journal.append("original", sha256="0")
        odd(tmp_path / "original.onnx")
        record: Any = SimpleNamespace(folder=tmp_path, journal=journal)
        with pytest.raises(ExportError, match=r"cannot load .*original\.onnx: "):
            original_onnx(record)


def test_an_onnx_file_has_at_most_two_gib(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with path.open("wb") as file:
        file.truncate((2 << 30) + 1)  # takes no room
    for read in (read_onnx, Runner):
        with pytest.raises(ExportError, match=r"model\.onnx: it has more than 2048 MiB"):
            read(path)


def test_a_file_is_no_larger_than_it_may_be(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("[" + "1," * 1000 + "1]")
    assert len(read_json(path)) == 1001
    with pytest.raises(OSError, match="more than"):
        read_bytes(path, most=100)


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", '{"a": -Infinity}', "1e999", "[" * 100_000, "1" * 5000, "{"])
def test_what_is_no_number_is_no_json(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)


# Links out of a folder


def test_a_journal_is_not_followed_out_of_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outside, run = tmp_path / "diary.txt", tmp_path / "run"
    outside.write_text("no line ends here")
    run.mkdir()
    (run / "config.yaml").write_text("seed: 1\n")
    (run / "journal.jsonl").symlink_to(outside)
    assert main(["search", "--resume", str(run)]) == 2
    assert "it is a link" in capsys.readouterr().err
    with pytest.raises(BundleError, match="it is a link"):
        Journal(run / "journal.jsonl")
    assert outside.read_text() == "no line ends here"


@pytest.mark.parametrize("name", ["config.yaml", "study.log", "checkpoint.pt", "result.json", "original.onnx", "any"])
def test_nothing_in_a_run_is_a_link(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outside, run = tmp_path / "outside", tmp_path / "run"
    outside.write_text("seed: 1\n")
    run.mkdir()
    (run / "config.yaml").write_text("seed: 1\n")
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(outside)
    assert main(["search", "--resume", str(run)]) == 2
    assert f"{name}: it is a link" in capsys.readouterr().err
    assert outside.read_text() == "seed: 1\n"


def test_what_is_no_journal_is_not_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text("a text without an end")
    with pytest.raises(BundleError, match="damaged in line 1"):
        Journal(path)
    assert path.read_text() == "a text without an end"
    path.write_text('{"kind": "done"}\n{"kin')
    with Journal(path) as journal:
        assert journal.last("done")
    assert path.read_text() == '{"kind": "done"}\n'


def test_opening_does_not_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
        with pytest.raises(OSError, match="no regular file"):
            opened(tmp_path / "fifo", flags)
    with pytest.raises(OSError, match="no path"):
        opened(tmp_path / "a\0b")


# Journals, progress and dead folders

GOOD = {
    "stage": {"name": "search", "seconds": 1.5},
    "evaluation": {"choice": [1], "loss": 1.0, "metric": 0.5, "reward": 0.5, "costs": {"macs": 1.0}, "seconds": 0.1},
    "trial": {"choice": [1], "loss": 1.0, "metric": 0.5},
    "test": {"found": {"final_test": 0.5}},
    "latency": {"choice": [1], "ms": 1.0, "predicted": 1.0, "quiet": 1.0},
    "device-latency": {"key": "a", "ms": 1.0},
    "training": {"done": 0.5, "loss": 1.0},
    "run": {"fingerprint": "a", "config": "b", "splits": {}},
}
BAD = [
    ("stage", "seconds", "NaN"), ("stage", "seconds", "-1"), ("stage", "seconds", '"1"'), ("stage", "name", "[]"),
    ("evaluation", "loss", "null"), ("evaluation", "metric", "true"), ("evaluation", "choice", "[]"),
    ("evaluation", "costs", "3"), ("evaluation", "costs", '{"macs": "x"}'), ("evaluation", "seconds", "1e300"),
    ("trial", "metric", '"good"'), ("test", "found", "[]"), ("test", "found", '{"final_test": null}'),
    ("latency", "ms", "0"), ("latency", "ms", "-3"), ("device-latency", "ms", "{}"), ("training", "done", "2"),
    ("run", "splits", "[]"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "key", "value"), BAD)
def test_a_wrong_value_in_a_journal_is_told_with_its_line(kind: str, key: str, value: str, tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    good = json.dumps({"kind": kind, **GOOD[kind]})
    bad = json.dumps({"kind": kind, **GOOD[kind], key: "HERE"}).replace('"HERE"', value)
    path.write_text(f"{good}\n{bad}\n{good}\n")
    with pytest.raises(BundleError, match="damaged in line 2") as caught:
        Journal(path)
    assert "\n" not in str(caught.value)
    path.write_text(f"{good}\n" * 2)
    assert len(read_records(path)) == 2


def test_kinds_and_keys_of_a_newer_version_pass(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"kind": "stage", "name": "x", "seconds": 1, "new": [1]}\n{"kind": "unheard", "seconds": -1}\n')
    assert len(read_records(path)) == 2


PROGRESS = {"stage": "search", "share": 0.5, "note": "", "began": 1.0, "time": 1.0, "pid": 1, "host": "x"}


@pytest.mark.parametrize(
    ("key", "value"),
    [("pid", 10**400), ("pid", -1), ("pid", 0), ("pid", 2**40), ("pid", "1"),
     ("share", 1e400), ("share", -1), ("share", 2),
     ("time", "now"), ("began", None), ("began", -1), ("stage", 3), ("host", []), ("note", {})],
)  # fmt: skip
def test_a_wrong_value_in_progress_is_no_progress(key: str, value: object, tmp_path: Path) -> None:
    (tmp_path / "progress.json").write_text(json.dumps(PROGRESS))
    assert read_progress(tmp_path) is not None
    (tmp_path / "progress.json").write_text(json.dumps({**PROGRESS, key: value}))
    assert read_progress(tmp_path) is None


def test_a_folder_without_its_configuration_is_begun_anew(tmp_path: Path) -> None:
    config = Config(out=str(tmp_path))
    path = tmp_path / "journal.jsonl"
    for content in ("", '{"kind": "ru', json.dumps({"kind": "run", **GOOD["run"]}) + "\n"):
        path.write_text(content)
        assert new_folder(config) == tmp_path
        assert not path.exists()
    path.write_text(json.dumps({"kind": "trial", **GOOD["trial"]}) + "\n")
    with pytest.raises(BundleError, match="already holds a run"):
        new_folder(config)
    path.write_text("")
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(BundleError, match="already holds a run"):
        new_folder(config)


# Weights


def test_an_archive_that_unpacks_to_gigabytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(200 << 20))
    with pytest.raises(ModelError, match="would unpack to 200 MiB"):
        read_state_dict(str(path))


ODD_TENSORS = {
    "sparse": lambda: torch.eye(3).to_sparse(),
    "on the meta device": lambda: torch.empty(3, 3, device="meta"),
    "of which the file holds a small part": lambda: torch.zeros(1).expand(10**8),
}


@pytest.mark.parametrize("told", ODD_TENSORS)
def test_a_tensor_of_an_odd_kind_is_named(told: str, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"weight": ODD_TENSORS[told](), "bias": torch.zeros(3)}, path)
    with pytest.raises(ModelError, match=f"'weight'.*{told}") as caught:
        load_weights(nn.Linear(3, 3), str(path))
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_to_its_end_leaves_nothing_for_the_next(tmp_path: Path) -> None:
    """torch would check the first file's sparse tensor when it loads the second, with memory that is another's then."""
    torch.save({"a": torch.eye(4).to_sparse(), "b": nn.Linear(2, 2)}, tmp_path / "bad.pt")
    torch.save({"w": torch.ones(2)}, tmp_path / "good.pt")
    with pytest.raises(ModelError, match="holds more than tensors"):
        read_state_dict(str(tmp_path / "bad.pt"))
    assert torch._utils._sparse_tensors_to_validate == []
    assert torch.equal(read_state_dict(str(tmp_path / "good.pt"))["w"], torch.ones(2))
