"""Runs on a real Ray cluster of several nodes on this machine: placement, streaming, and a node that dies."""

import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from amc.batch.cluster import Courier, RayBackend, RemoteEvaluator, connected, receive_files
from amc.batch.drive import Limits, Observer, Outcome
from amc.batch.matrix import read_matrix
from amc.batch.run import run_batch
from amc.batch.worker import evaluator_of
from amc.cli import main
from amc.config import from_dict
from amc.pipeline.stages import settings_of

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'amc-compress[ray]'")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning"),
]

SLOW_REWARD = """
import time
def patient(evaluation):
    time.sleep(0.4)
    return evaluation.metric
"""
TINY = {
    "common": {
        "budget": {"flops": "0.5"},
        "search": {"recalibrate": "off"},
        "finetune": {"epochs": 0},
        "data": {"calibration": 64, "search": 50},
    },
}


@pytest.fixture(scope="module")
def cluster():
    """A head without CPUs and two nodes. Their processes run at the usual priority, beside the other tests."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        found.phone = found.add_node(num_cpus=1, resources={"phone": 1})
        found.other = found.add_node(num_cpus=1, resources={"phone": 1})
        yield found
        found.shutdown()


class Watcher(Observer):
    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []

    def ended(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)


def evaluations(folder: Path) -> list[dict]:
    path = folder / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [r for r in (json.loads(line) for line in lines if line.endswith(b"\n")) if r["kind"] == "evaluation"]


def test_a_dead_node_loses_only_the_work_since_its_last_message(cluster, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(SLOW_REWARD)
    matrix = {**TINY, "devices": {"phone": {"resources": {"phone": 1}}},
              "searchers": {"random": {"evaluations": 12, "reward": "mine.py:patient"}}}  # fmt: skip
    Path("b.yaml").write_text(yaml.safe_dump(matrix))
    jobs = read_matrix("b.yaml", "out").jobs()
    before: list[dict] = []

    def kill() -> None:
        folder = Path("out", jobs[0].name)
        while len(evaluations(folder)) < 3:
            time.sleep(0.1)
        # the run is on the node whose resource is taken
        free = {
            n["NodeID"]: ray._private.state.available_resources_per_node().get(n["NodeID"], {}) for n in ray.nodes()
        }
        busy = next(n for n in (cluster.phone, cluster.other) if not free.get(n.node_id, {}).get("phone"))
        before.extend(evaluations(folder))
        cluster.remove_node(busy, allow_graceful=False)

    killer = threading.Thread(target=kill)
    killer.start()
    watcher = Watcher()
    ended = run_batch(jobs, Path("out"), Limits(threads=1), watcher, cluster.address)
    killer.join()
    assert [(o.attempt, o.last, o.failure is None) for o in watcher.outcomes] == [(1, False, False), (2, True, True)]
    assert "died" in watcher.outcomes[0].failure.reason
    assert ended.failed == {}
    after = evaluations(Path("out", jobs[0].name))
    assert len(before) >= 3
    assert after[: len(before)] == before
    assert len(after) == len({tuple(e["choice"]) for e in after}) <= 12
    assert (Path("out") / jobs[0].name / "model.onnx").is_file()
    assert not (Path("out") / jobs[0].name / "progress.json").exists()


def test_evaluations_on_the_cluster_equal_local_ones(cluster, tmp_path: Path):
    config = from_dict({**TINY["common"], "threads": 1})
    evaluator = evaluator_of(config, tmp_path)
    choices = [(8, 8, 16, 16, 32, 32), (12, 16, 20, 32, 24, 64), (16, 16, 32, 32, 64, 64)]
    with connected(cluster.address):
        remote = RayBackend(config, evaluator, 1)
        remote.announce(choices)
        assert [remote.score(choice) for choice in choices] == [evaluator.score(choice) for choice in choices]
        with pytest.raises(RuntimeError):
            remote.score((5, 6))


def test_new_files_of_a_run_are_sent_to_the_batch(tmp_path: Path):
    away, home, sent = tmp_path / "away", tmp_path / "home", []
    courier = Courier(away, "run#1", SimpleNamespace(put=SimpleNamespace(remote=sent.extend)))
    away.mkdir()
    for line in (b'{"kind": "a"}\n', b'{"kind": "b"}\n'):
        with (away / "journal.jsonl").open("ab") as journal:
            journal.write(line)
        (away / "profile.json").write_bytes(line)  # learned in minutes: the next attempt goes on with it
        courier.begin("stage")
    courier.begin("nothing is new")
    receive_files(sent, {"run#1": home})
    assert [m[1:3] for m in sent] == [
        ("journal.jsonl", 0),
        ("profile.json", 0),
        ("journal.jsonl", 14),
        ("profile.json", 0),
    ]
    assert {path.name: path.read_bytes() for path in home.iterdir()} == {
        path.name: path.read_bytes() for path in away.iterdir()
    }


def test_a_remote_evaluator_gives_the_same_scores_and_keeps_spilled_files():
    values = {**TINY["common"], "threads": 1, "memory_limit": 1e-6}  # nothing fits: moments are filed
    settings = settings_of(from_dict(values))
    single, half = (RemoteEvaluator(values, replace(settings, dtype=dtype), ".") for dtype in ("float32", "bfloat16"))
    choice = (8, 8, 16, 16, 32, 32)
    assert single.score(choice) != half.score(choice)


def test_runs_that_no_node_can_take_are_refused(cluster, tmp_path: Path, capsys):
    path = tmp_path / "b.yaml"
    path.write_text(yaml.safe_dump({**TINY, "devices": {"tpu": {"resources": {"tpu": 2}}}}))
    assert main(["batch", str(path), "--out", str(tmp_path / "out"), "--ray", cluster.address]) == 2
    assert "run tpu needs 1 CPU, 2 tpu, but no node of the Ray cluster has that" in capsys.readouterr().err


def test_a_cluster_that_does_not_answer_is_one_line_without_delay(tmp_path: Path, capsys):
    path = tmp_path / "b.yaml"
    path.write_text(yaml.safe_dump({**TINY, "seeds": [0]}))
    begun = time.monotonic()
    assert main(["batch", str(path), "--out", str(tmp_path / "out"), "--ray", "127.0.0.1:1"]) == 2
    assert "no Ray cluster answers at 127.0.0.1:1" in capsys.readouterr().err
    assert time.monotonic() - begun < 10
    assert not (tmp_path / "out").exists()
