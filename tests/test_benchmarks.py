"""The benchmarks of the search in miniature: they run, resume, and meet the budget."""

import sys

import pytest

from benchmarks import bench, evaluation, latency_or_macs, literature, proxy, search


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch):
    for module in (bench, evaluation, literature, proxy, search):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    return tmp_path


def call(module, monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["benchmark", "--search-images", "100", *words])
    module.main()


def test_searchers_and_torch_pruning_side_by_side(results, monkeypatch, capsys):
    words = ["--searchers", "uniform,random", "--evaluations", "3", "--seeds", "1"]
    words += ["--train", "1", "--baselines", "--untrained"]
    call(search, monkeypatch, *words)
    path = results / "search-resnet8-0.5-100-images.jsonl"
    before = path.read_bytes()
    with bench.Records(path) as records:
        rows = records.all()
    assert [r["piece"] for r in rows if "trail" in r] == ["uniform 0, 1 evaluations", "random 0, 3 evaluations"]
    trained = [r for r in rows if "after" in r]
    assert len(trained) == 2 + len(search.TORCH_PRUNING)
    assert all(r["macs"] <= 0.5 for r in trained)
    call(search, monkeypatch, *words)
    assert path.read_bytes() == before, "what is there is not done again"
    told = capsys.readouterr().out
    assert "| random | 1 |" in told
    assert "The original's accuracy on the test split is" in told


@pytest.mark.slow
def test_the_literature_in_miniature(results, monkeypatch, capsys):
    monkeypatch.setattr(literature, "DENSITIES", (0.1,))
    monkeypatch.setattr(literature, "SHARES", (0.5,))
    monkeypatch.setattr(literature, "SCHEDULES", {"one-shot": {}, "gradual": {"steps": 2}})
    words = ["--parts", "sparse", "schedules", "--seeds", "1", "--epochs", "0.1"]
    call(literature, monkeypatch, *words)
    path = results / "literature-resnet8.jsonl"
    before = path.read_bytes()
    call(literature, monkeypatch, *words)
    assert path.read_bytes() == before, "what is there is not done again"
    with bench.Records(path) as records:
        rows = records.all()
    assert all(0.05 < r["density"] <= 0.101 for r in rows if r["piece"].startswith("sparse"))
    call(literature, monkeypatch, "--report")
    told = capsys.readouterr().out
    assert "| magnitude, 0.1 | 1 |" in told
    assert "| one-shot, rewind-lr, 0.5 | 1 |" in told


def test_the_literatures_tables():
    rows = [{"piece": f"sparse rigl 0.1 {seed}", "accuracy": 0.9 + seed / 100, "density": 0.1} for seed in (0, 2)]
    assert literature.report(rows) == "| rule, density | n | accuracy |\n|---|---|---|\n| rigl, 0.1 | 2 | 91.0 ± 1.4 |"


def test_every_proxy_has_a_correlation(results, monkeypatch, capsys):
    monkeypatch.setattr(proxy, "BRIEF", (1,))
    call(proxy, monkeypatch, "--policies", "4", "--steps", "1")
    told = capsys.readouterr().out
    names = ["loss", "refined accuracy", "second order", "synaptic flow", "loss after 1 steps"]
    assert all(f"| {name} |" in told for name in names)


def test_an_evaluation_in_parts(results, monkeypatch, capsys):
    call(evaluation, monkeypatch, "--evaluations", "3")
    told = capsys.readouterr().out
    assert told.count("with BatchNorms folded") == 2
    with bench.Records(results / "evaluation.jsonl") as records:
        search = records("resnet8, --sequential-reconstruction search, 100 images by logit_mse")["search"]
    assert 0 < search["score"] + search["re-solve"] < search["total"]


def test_what_else_could_run_forward_passes(results, monkeypatch, capsys):
    call(evaluation, monkeypatch, "--runtimes", "onnx")
    told = capsys.readouterr().out
    assert all(name in told for name in ("torch bfloat16", "ONNX Runtime float32", "preparing ONNX Runtime"))


def test_what_two_policies_have_in_common(digits):
    """The last site alone: nearly all before it; the first one: nothing but what comes before it."""
    task, graph, *_ = digits
    full = tuple(site.channels for site in graph.sites)
    opened = bench.Bench(task, graph, None, None, None)
    last, first = (*full[:-1], 8), (8, *full[1:])
    assert evaluation.unchanged(opened, [full, last]) > 0.7
    assert evaluation.unchanged(opened, [full, first]) == 0
    assert evaluation.unchanged(opened, [full, first, full]) == 0.5  # the last has been seen before


def test_at_equal_accuracy_times_are_interpolated_between_the_best():
    found = [
        ("latency", 0.5, 80.0),
        ("latency", 0.6, 79.0),
        ("latency", 0.7, 90.0),
        ("macs", 0.8, 85.0),
        ("macs", 0.9, 91.0),
    ]
    rows = [{"asked": asked, "ratio": time, "accuracy": accuracy, "share": 0.5} for asked, time, accuracy in found]
    first, second = latency_or_macs.faster(rows, "accuracy")
    assert first == "| 8500.00 % | 0.5 | 0.800 | 0.600 | 0.750 |"
    assert second == "| 9100.00 % | 0.5 | 0.900 | accuracy not reached | |"
