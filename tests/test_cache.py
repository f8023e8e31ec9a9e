"""What was computed once is found again, and nothing else is: not what changed, not what is damaged, not half of it."""

import ctypes
import errno
import fcntl
import json
import multiprocessing as mp
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from amc.cli import main
from amc.config import DataConfig, from_dict
from amc.evaluation.backend import FunctionBackend
from amc.evaluation.cached import CachedBackend, CachedSearch
from amc.evaluation.evaluator import Evaluator
from amc.evaluation.memo import Memo
from amc.evaluation.settings import EvaluationSettings
from amc.graph.build import build_graph
from amc.latency.profiling import profile_key
from amc.pipeline.stages import settings_of
from amc.runtime.cache import Cache
from amc.runtime.locks import MeasurementLock
from amc.runtime.secret import user_key
from amc.task import load_data, load_model, make_task

ME = {"weights": "a", "seed": 0}


def me() -> dict:
    return ME


def ones() -> dict[str, torch.Tensor]:
    return {"x": torch.ones(3), "y": torch.tensor(7)}


def never() -> dict[str, torch.Tensor]:
    raise AssertionError("this must not be computed again")


def only(cache: Cache) -> Path:
    (entry,) = cache.entries()
    return entry.path


# Entries


def test_tensors_are_computed_once(tmp_path: Path):
    first = Cache(tmp_path).tensors("moments", me, ones)
    again = Cache(tmp_path).tensors("moments", me, never)
    assert again.keys() == first.keys()
    assert all(torch.equal(again[k], first[k]) and again[k].dtype == first[k].dtype for k in first)
    with pytest.raises(AssertionError):
        Cache(tmp_path).tensors("moments", lambda: {**ME, "seed": 1}, never)
    with pytest.raises(AssertionError):
        Cache(tmp_path).tensors("orders", me, never)


def test_a_table_grows_and_is_seen_by_others(tmp_path: Path):
    mine, yours = Cache(tmp_path).table("scores", me), Cache(tmp_path).table("scores", me)
    mine.put([1, 2], [0.5, 0.25])
    assert yours.get([1, 2]) == [0.5, 0.25]
    yours.put([3], 1.0)
    assert mine.get([3]) == 1.0
    assert mine.get([4]) is None
    assert Cache(tmp_path).table("scores", lambda: {"weights": "b"}).get([1, 2]) is None


def test_without_a_folder_nothing_is_kept(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cache = Cache(None)
    assert torch.equal(cache.tensors("moments", never, ones)["x"], torch.ones(3))
    cache.table("scores", never).put(1, 2)
    assert cache.table("scores", never).get(1) is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", [0.02, 0.3, 0.95])
@pytest.mark.parametrize("kind", ["flip", "cut"])
def test_damaged_tensors_are_computed_anew(tmp_path: Path, place: float, kind: str):
    cache = Cache(tmp_path)
    cache.tensors("moments", me, lambda: {"x": torch.arange(64.0)})
    path = only(cache)
    content = bytearray(path.read_bytes())
    index = int(place * len(content))
    path.write_bytes(
        content[:index] + (b"" if kind == "cut" else bytes([content[index] ^ 0x10]) + content[index + 1 :])
    )
    assert torch.equal(cache.tensors("moments", me, ones)["x"], torch.ones(3))
    assert torch.equal(cache.tensors("moments", me, never)["x"], torch.ones(3))


def test_every_damaged_byte_of_a_table_costs_its_line_only(tmp_path: Path):
    cache = Cache(tmp_path)
    table = cache.table("scores", me)
    for key in range(3):
        table.put(key, key * 10)
    path = only(cache)
    content = path.read_bytes()
    for index in range(len(content)):
        path.write_bytes(content[:index] + bytes([content[index] ^ 0x01]) + content[index + 1 :])
        found = [cache.table("scores", me).get(key) for key in range(3)]
        assert all(value in (None, key * 10) for key, value in enumerate(found))
    for end in range(len(content)):  # a writer that was killed: what comes after is whole again
        path.write_bytes(content[:end])
        cache.table("scores", me).put("new", 1)
        assert cache.table("scores", me).get("new") == 1


def test_the_least_recently_used_entry_is_evicted_first(tmp_path: Path):
    cache = Cache(tmp_path, limit=10_000)
    for number in range(4):
        cache.tensors("moments", lambda n=number: {"n": n}, lambda: {"x": torch.zeros(800)})  # 3.2 kB and a head
        for entry in cache.entries():
            os.utime(entry.path, (entry.used - 10, entry.used - 10))
        if number == 2:
            cache.tensors("moments", lambda: {"n": 1}, never)
    assert sum(entry.size for entry in cache.entries()) <= 10_000
    cache.tensors("moments", lambda: {"n": 1}, never)
    cache.tensors("moments", lambda: {"n": 3}, never)
    with pytest.raises(AssertionError):
        cache.tensors("moments", lambda: {"n": 0}, never)


def test_a_full_disk_keeps_nothing_and_stops_nothing(tmp_path: Path, monkeypatch):
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert torch.equal(Cache(tmp_path).tensors("moments", me, ones)["x"], torch.ones(3))
    assert not Cache(tmp_path).entries()
    monkeypatch.undo()
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path):
    (tmp_path / "file").write_text("")
    cache = Cache(tmp_path / "file")
    assert torch.equal(cache.tensors("moments", me, ones)["x"], torch.ones(3))
    table = cache.table("scores", me)
    table.put(1, 2)
    assert table.get(1) == 2


def test_foreign_files_in_the_cache_folder_are_left_alone(tmp_path: Path):
    cache = Cache(tmp_path, limit=0)
    cache.table("scores", me).put(1, 2)
    digest = only(cache).stem
    others = [tmp_path / "run" / name for name in ("model.safetensors", "journal.jsonl", "a.lock", f"{digest}.txt")]
    for path in others:
        path.parent.mkdir(exist_ok=True)
        path.write_text("a run's")
    (tmp_path / "moments").mkdir()
    (tmp_path / "moments" / f".{digest}.safetensors.123.tmp").write_text("of a writer that was killed")
    cache.evict()
    assert not cache.entries()
    cache.table("scores", me).put(1, 2)
    cache.clear()
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(others)


# Many processes


def _write(folder: Path, number: int) -> None:
    cache = Cache(folder)
    table = cache.table("scores", me)
    for key in range(200):
        if table.get([number, key]) is None:
            table.put([number, key], number * 1000 + key)


def _compute(folder: Path) -> None:
    def slow() -> dict[str, torch.Tensor]:
        with (folder / "computed").open("ab") as file:
            file.write(b"x")
        time.sleep(0.2)
        return ones()

    Cache(folder).tensors("moments", me, slow)


def _wait_and_hold(folder: Path, locks: Path) -> None:
    with MeasurementLock(locks) as lock:
        Cache(folder, resting=lock.released).tensors("moments", me, ones)


def forked(target, *arguments):
    process = mp.get_context("fork").Process(target=target, args=arguments)
    process.start()
    return process


def test_writers_at_the_same_time_lose_nothing(tmp_path: Path):
    writers = [forked(_write, tmp_path, number) for number in range(4)]
    for writer in writers:
        writer.join()
    table = Cache(tmp_path).table("scores", me)
    assert [table.get([n, k]) for n in range(4) for k in range(200)] == [
        n * 1000 + k for n in range(4) for k in range(200)
    ]


def test_one_computes_and_the_others_wait(tmp_path: Path):
    for process in [forked(_compute, tmp_path) for _ in range(4)]:
        process.join()
    assert (tmp_path / "computed").read_bytes() == b"x"


def _score(folder: Path) -> None:
    table = Cache(folder).table("scores", me)
    for key in range(20):

        def slow(key=key) -> int:
            with (folder / "scored").open("ab") as file:
                file.write(b"x")
            time.sleep(0.01)
            return key + 1

        assert table.once(key, slow) == key + 1


def test_concurrent_requests_compute_once(tmp_path: Path):
    for process in [forked(_score, tmp_path) for _ in range(4)]:
        process.join()
        assert process.exitcode == 0
    assert (tmp_path / "scored").read_bytes() == b"x" * 20


def test_writers_killed_at_any_moment_leave_a_whole_cache(tmp_path: Path):
    for number in range(40):
        writer = forked(_write, tmp_path, number)
        time.sleep(0.001 * (number % 20))
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
    _write(tmp_path, 99)
    table = Cache(tmp_path).table("scores", me)
    assert [table.get([99, k]) for k in range(200)] == [99_000 + k for k in range(200)]
    found = [table.get([n, k]) for n in range(40) for k in range(200)]
    assert all(v in (None, n * 1000 + k) for v, (n, k) in zip(found, np.ndindex(40, 200), strict=True))


# What a run shares


@pytest.fixture(scope="module")
def task():
    splits = load_data(DataConfig(calibration=64, search=50))
    return make_task("digits", load_model("resnet8", None, 1, 10, "digits"), splits, torch.device("cpu"))


CONFIG = from_dict({"budget": {"flops": "0.5"}})


def kinds(folder: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    for entry in Cache(folder).entries():
        found[entry.kind] = found.get(entry.kind, 0) + 1
    return found


def use(folder: Path, task, config=CONFIG) -> tuple[float, float]:
    """Do with the cache what a run does; gives a score and a site's error."""
    memo = Memo(Cache(folder), task, config)
    graph = build_graph(task.model, task.example)
    moments = memo.moments(graph)
    evaluator = Evaluator(task, graph, memo.orders(graph, moments), moments, settings_of(config))
    choice = tuple(site.channels // 2 for site in graph.sites)
    memo.original_score("test", task.splits.search)
    backend = CachedBackend(evaluator, memo, evaluator.settings)
    return backend.score(choice).loss, backend.site_error(0, 4)


def test_a_second_run_computes_nothing_and_finds_the_same(tmp_path: Path, task, monkeypatch):
    first = use(tmp_path, task)
    assert kinds(tmp_path) == {"moments": 1, "orders": 1, "scores": 1, "errors": 1, "baselines": 1}
    for name in ("amc.evaluation.memo.collect", "amc.evaluation.memo.rank", "amc.evaluation.memo.evaluate"):
        monkeypatch.setattr(name, never)
    monkeypatch.setattr(Evaluator, "score", never)
    monkeypatch.setattr(Evaluator, "site_error", never)
    assert use(tmp_path, task) == first


def changed(task, monkeypatch, what: str):
    """The task or the configuration with one thing changed."""
    config = CONFIG
    if what == "weights":
        model = load_model("resnet8", None, 1, 10, "digits")
        model.fc.bias.data[0] += 1e-3
        task = make_task("digits", model, task.splits, task.device)
    elif what == "forward":
        model = load_model("resnet8", None, 1, 10, "digits")
        kind = type(model)
        model.__class__ = type(kind.__name__, (kind,), {"forward": lambda m, x: 2 * kind.forward(m, x)})
        task = make_task("digits", model, task.splits, task.device)
    elif what == "split":
        task = replace(task, splits=load_data(DataConfig(calibration=64, search=50, seed=1)))
    elif what == "pixels":
        images = task.splits.search.images.clone()
        images[task.splits.search.members[-1], 0, 0, 0] += 1
        images[task.splits.calibration.members[-1], 0, 0, 0] += 1
        parts = {name: replace(getattr(task.splits, name), images=images) for name in ("search", "calibration")}
        task = replace(task, splits=replace(task.splits, **parts))
    elif what == "objective":
        plain = task.objective.loss
        task = replace(
            task, objective=replace(task.objective, loss=lambda outputs, targets: 2 * plain(outputs, targets))
        )
    elif what == "seed":
        config = CONFIG.replace(seed=1)
    elif what == "criterion":
        config = CONFIG.replace(search=CONFIG.search.replace(criterion="l2"))
    elif what == "objective of the search":
        config = CONFIG.replace(search=CONFIG.search.replace(objective="loss"))
    elif what == "objective's file":
        config = CONFIG.replace(objective="mine.py:make")
    elif what == "code":
        monkeypatch.setattr("amc.evaluation.keys.code_version", lambda: "another")
    elif what == "library":
        monkeypatch.setattr("amc.evaluation.keys.library_versions", lambda: {"torch": "9.9"})
    return task, config


@pytest.mark.parametrize(
    "what",
    [
        "weights",
        "forward",
        "split",
        "pixels",
        "objective",
        "objective's file",
        "seed",
        "criterion",
        "objective of the search",
        "code",
        "library",
    ],
)
def test_a_changed_input_is_a_cache_miss(tmp_path: Path, task, monkeypatch, what: str):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("def make(): ...")
    if what == "objective's file":
        use(tmp_path, task, CONFIG.replace(objective="mine.py:make"))
        Path("mine.py").write_text("def make(): ...  # another")
    else:
        use(tmp_path, task)
    before = kinds(tmp_path)
    use(tmp_path, *changed(task, monkeypatch, what))
    same = {
        "objective": {"moments", "orders"},
        "objective's file": {"moments", "orders"},
        "seed": {"baselines"},
        "criterion": {"moments", "baselines"},
        "objective of the search": {"moments", "orders", "baselines"},
    }.get(what, set())
    assert kinds(tmp_path) == {kind: count if kind in same else count + 1 for kind, count in before.items()}


def test_findings_are_keyed_by_network_settings_and_reward(tmp_path: Path, task):
    def found(value: int, settings=((2, 4),), task=task, recalibrate=False, **search) -> int:
        config = CONFIG.replace(search=CONFIG.search.replace(**search))
        memo, how = Memo(Cache(tmp_path / "c"), task, config), EvaluationSettings("loss", recalibrate=recalibrate)
        nothing = FunctionBackend(lambda choice: pytest.fail("nothing is scored"))
        backend = CachedSearch(nothing, memo, how, SimpleNamespace(settings=settings))
        return backend.memo(["middle", {"macs": 10.0}], lambda: value)

    assert [found(1), found(2)] == [1, 1]
    assert found(2, settings=((2, 4, 8),)) == 2
    assert found(3, reward="error") == 3
    assert found(4, race=not CONFIG.search.race) == 4
    other = make_task("other", load_model("resnet8", "random", 1, 10, "digits"), task.splits, task.device)
    assert found(5, task=other) == 5
    assert found(6, recalibrate=True) == 6
    assert found(7) == 1


def test_latency_profiles_are_keyed_by_machine_runtime_and_threads(tmp_path: Path, task, monkeypatch):
    bench, made = SimpleNamespace(operators=[]), []

    def profile(threads: int = 1) -> bytes:
        def learn() -> bytes:
            made.append(threads)
            return b"%d" % len(made)

        return Memo(Cache(tmp_path / "c"), task, CONFIG).profile(profile_key(bench, threads, task), learn)

    assert [profile(), profile()] == [b"1", b"1"]
    assert profile(2) == b"2"
    for what in (
        "amc.latency.profiling.runtime_version",
        "amc.latency.profiling.cpu_name",
        "amc.evaluation.memo.code_version",
        "socket.gethostname",
    ):
        with monkeypatch.context() as patch:
            patch.setattr(what, lambda: "another")
            before = len(made)
            profile()
            assert len(made) == before + 1
    assert profile() == b"1"


def test_device_times_are_keyed_by_network_and_command_until_the_device_changes(tmp_path: Path, task):
    script = tmp_path / "measure.sh"
    script.write_text("one")

    def times(ms: float, task=task, word: str = "x"):
        search = CONFIG.search.replace(latency_model=f"command:{script} {word} {{onnx}}")
        return Memo(Cache(tmp_path / "c"), task, CONFIG.replace(search=search)).device_times("original", ms)

    times(2.0).put("smallest", 1.0)
    assert times(2.05).get("smallest") == 1.0
    assert times(2.5).get("smallest") is None  # it is slower now: another table
    assert times(2.5).get("original") == 2.5
    assert times(2.0).get("smallest") == 1.0  # and is what it was again
    assert times(2.0, word="y").get("smallest") is None
    other = make_task("other", load_model("resnet8", "random", 1, 10, "digits"), task.splits, task.device)
    assert times(2.0, other).get("smallest") is None
    script.write_text("two")
    assert times(2.0).get("smallest") is None


def test_waiting_for_another_process_releases_the_measurement_lock(tmp_path: Path):
    other = forked(_compute, tmp_path / "c")
    with MeasurementLock(tmp_path / "locks") as lock:
        time.sleep(0.05)
        waiting = forked(_wait_and_hold, tmp_path / "c", tmp_path / "locks")
        time.sleep(0.05)
        with lock.exclusive() as alone:
            assert alone
    for process in (other, waiting):
        process.join()
        assert process.exitcode == 0


def test_the_cache_is_shown_and_cleared(tmp_path: Path, task, monkeypatch, capsys):
    monkeypatch.setenv("AMC_CACHE", str(tmp_path / "c"))
    use(tmp_path / "c", task)
    assert main(["cache"]) == 0
    out = capsys.readouterr().out
    assert "moments" in out
    assert f"{tmp_path / 'c'}: " in out
    assert main(["cache", "--clear"]) == 0
    assert not Cache(tmp_path / "c").entries()
    assert main(["cache"]) == 0
    assert "0 B of at most" in capsys.readouterr().out


def test_tables_are_plain_text(tmp_path: Path):
    table = Cache(tmp_path).table("scores", me)
    table.put([1, 2], [0.5, 0.25])
    lines = only(Cache(tmp_path)).read_text().splitlines()
    assert [json.loads(line.partition(" ")[2]) for line in lines] == [ME, [[1, 2], [0.5, 0.25]]]


def test_entries_that_others_may_have_written_are_not_trusted(tmp_path):
    cache = Cache(tmp_path)
    tensors = cache.tensors("kind", lambda: {"a": 1}, lambda: {"x": torch.ones(2)})
    cache.table("kind", lambda: {"a": 1}).put("key", 1)
    assert all(entry.path.stat().st_mode & 0o777 == 0o600 for entry in cache.entries())
    assert torch.equal(cache.tensors("kind", lambda: {"a": 1}, dict)["x"], tensors["x"])
    assert cache.table("kind", lambda: {"a": 1}).get("key") == 1
    for entry in cache.entries():
        entry.path.chmod(0o666)
    assert not cache.tensors("kind", lambda: {"a": 1}, dict)
    for entry in cache.entries():
        entry.path.chmod(0o666)
    assert cache.table("kind", lambda: {"a": 1}).get("key") is None


@pytest.mark.parametrize("odd", ["fifo", "link", "folder"])
def test_an_odd_entry_is_a_miss(tmp_path, odd):
    cache = Cache(tmp_path / "cache")
    cache.tensors("kind", lambda: {"a": 1}, lambda: {"x": torch.ones(2)})
    cache.table("kind", lambda: {"a": 1}).put("key", 1)
    for entry in cache.entries():
        moved = entry.path.rename(tmp_path / entry.path.name)
        {"fifo": os.mkfifo, "link": lambda path, to=moved: path.symlink_to(to), "folder": os.mkdir}[odd](entry.path)
    assert set(cache.tensors("kind", lambda: {"a": 1}, lambda: {"y": torch.ones(1)})) == {"y"}
    table = cache.table("kind", lambda: {"a": 1})
    assert table.get("key") is None
    table.put("key", 2)
    assert table.get("key") == 2


def test_leftovers_of_killed_writers_are_removed(tmp_path):
    cache = Cache(tmp_path)
    cache.tensors("kind", lambda: {"a": 1}, lambda: {"x": torch.ones(2)})
    left = tmp_path / "kind" / f".{'0' * 64}.safetensors.123.tmp"
    left.write_bytes(b"half")
    cache.table("kind", lambda: {"b": 1})
    assert left.exists()
    os.utime(left, (0, 0))
    cache.table("kind", lambda: {"b": 1})
    assert not left.exists()


def test_unfinished_writes_count_towards_the_limit(tmp_path):
    cache = Cache(tmp_path, limit=10_000)
    cache.tensors("kind", lambda: {"a": 1}, lambda: {"x": torch.ones(2)})
    cache.table("kind", lambda: {"b": 1})
    assert len(cache.entries()) == 1
    left = tmp_path / "kind" / f".{'0' * 64}.safetensors.123.tmp"
    left.write_bytes(bytes(10_000))
    cache.table("kind", lambda: {"b": 1})
    assert not cache.entries()
    assert left.exists()


def test_a_stopped_process_blocks_nobody_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr("amc.runtime.entry_locks.LOCK_SECONDS", 0.2)
    cache = Cache(tmp_path)
    path = cache.path_of("kind", {"a": 1}, "lock")
    path.parent.mkdir()
    with path.open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert set(cache.tensors("kind", lambda: {"a": 1}, lambda: {"x": torch.ones(2)})) == {"x"}


# The user's key


def _key_of(path: Path, told) -> None:
    os.environ["AMC_KEY"] = str(path)
    told.send(user_key())


def test_processes_that_make_the_key_at_the_same_time_have_the_same(tmp_path: Path):
    ends = [mp.Pipe(duplex=False) for _ in range(8)]
    processes = [forked(_key_of, tmp_path / "amc" / "key", far) for _, far in ends]
    keys = {near.recv() for near, _ in ends}
    for process in processes:
        process.join()
    assert keys == {(tmp_path / "amc" / "key").read_bytes()}
    assert len(keys.pop()) == 32
    assert (tmp_path / "amc" / "key").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in (tmp_path / "amc").iterdir()] == ["key"]


@pytest.mark.parametrize("odd", ["empty", "short", "readable", "link"])
def test_an_invalid_or_readable_key_is_replaced(tmp_path: Path, monkeypatch, odd: str):
    path = tmp_path / "key"
    monkeypatch.setenv("AMC_KEY", str(path))
    before = user_key()
    if odd == "readable":
        path.chmod(0o640)
    elif odd == "link":
        path.symlink_to(path.rename(tmp_path / "elsewhere"))
    else:
        path.write_bytes(b"" if odd == "empty" else b"short")
    after = user_key()
    assert after not in (None, before)
    assert user_key() == after
    assert not path.is_symlink()


def test_entries_under_another_key_are_not_there(tmp_path: Path, monkeypatch):
    """Another user's entries, given the names that they must have, are passed over as well."""
    monkeypatch.setenv("AMC_KEY", str(tmp_path / "theirs"))
    theirs = Cache(tmp_path / "c")
    theirs.tensors("moments", me, lambda: {"x": torch.zeros(2)})
    theirs.table("scores", me).put("key", 10)
    monkeypatch.setenv("AMC_KEY", str(tmp_path / "mine"))
    mine = Cache(tmp_path / "c")
    for entry in theirs.entries():
        suffix = entry.path.suffix.lstrip(".")
        entry.path.rename(mine.path_of(entry.kind, ME, suffix))
    assert mine.table("scores", me).get("key") is None
    mine.table("scores", me).put("key", 20)
    assert mine.table("scores", me).get("key") == 20
    assert torch.equal(mine.tensors("moments", me, ones)["x"], torch.ones(3))
    assert torch.equal(mine.tensors("moments", me, never)["x"], torch.ones(3))


def test_entries_are_bound_to_their_identity(tmp_path: Path):
    cache, other = Cache(tmp_path), {**ME, "seed": 1}
    cache.tensors("moments", me, ones)
    cache.table("scores", me).put("key", 1)
    for entry in cache.entries():
        entry.path.rename(cache.path_of(entry.kind, other, entry.path.suffix.lstrip(".")))
    assert cache.table("scores", lambda: other).get("key") is None
    assert torch.equal(cache.tensors("moments", lambda: other, lambda: {"x": torch.ones(1)})["x"], torch.ones(1))


def test_without_a_key_nothing_is_cached_and_the_user_is_warned(tmp_path: Path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AMC_KEY", str(tmp_path / "file" / "key"))
    cache = Cache(tmp_path / "c")
    assert torch.equal(cache.tensors("moments", me, ones)["x"], torch.ones(3))
    cache.table("scores", me).put("key", 1)
    assert not cache.entries()
    assert "the key" in (cache.trouble() or "")


def test_a_read_only_cache_is_read_and_the_user_is_warned(tmp_path: Path):
    cache = Cache(tmp_path / "c")
    assert cache.trouble() is None
    cache.tensors("moments", me, ones)
    cache.table("scores", me).put("key", 1)
    assert cache.trouble() is None
    process = forked(_read_only, tmp_path / "c")
    process.join()
    assert process.exitcode == 0


def _read_only(folder: Path) -> None:
    """Root may write anywhere, unless it gives its capabilities up."""
    version_3, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    for path in (*folder.glob("*"), folder):
        path.chmod(0o500)
    assert ctypes.CDLL(None).capset(version_3, nothing) == 0
    cache = Cache(folder)
    assert "cannot be written to" in (cache.trouble() or "")
    assert torch.equal(cache.tensors("moments", me, never)["x"], torch.ones(3))
    table = cache.table("scores", me)
    assert table.get("key") == 1
    table.put("other", 2)
    assert torch.equal(cache.tensors("new", me, ones)["x"], torch.ones(3))


@pytest.mark.parametrize("folder", ["a" * 300, "file", "file/x", "loop", "fifo", "/dev/null/x", "a\0b", "\ud800"])
def test_where_there_can_be_no_cache_the_user_is_warned_and_nothing_is_kept(folder: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    Path("loop").symlink_to("loop")
    os.mkfifo("fifo")
    before = sorted(Path().iterdir())
    cache = Cache(Path(folder))
    assert "cannot be written to" in (cache.trouble() or "")
    assert torch.equal(cache.tensors("moments", me, ones)["x"], torch.ones(3))
    table = cache.table("scores", me)
    table.put("key", 1)
    assert table.get("key") == 1
    assert cache.table("scores", me).get("key") is None
    assert (cache.entries(), cache.clear()) == ([], 0)
    assert sorted(Path().iterdir()) == before
