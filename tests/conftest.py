"""What all tests share: one thread, and property tests that do the same on every machine."""

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("amc", deadline=None, derandomize=True, database=None, max_examples=25)
settings.load_profile("amc")
LONG = ("test_ray.py", "test_batch.py", "test_promise.py", "test_search.py", "test_run.py", "test_kill.py")


def pytest_collection_modifyitems(items):
    """Files that take minutes come first: at the end one of them would keep one process busy and the other idle."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """No test reads or writes the user's cache, or waits for what else runs on the machine.

    Runs measure what they deliver for a fraction of a second; how to measure well is tested by itself.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMC_LOCKS", str(tmp_path_factory.mktemp("locks")))
        patch.setenv("AMC_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("AMC_MEASURE_SECONDS", "0.2")
        yield


@pytest.fixture(scope="session")
def resnet8():
    """The embedded architecture, untrained, with its graph."""
    from amc.graph.build import build_graph
    from amc.task.models import build_model

    torch.manual_seed(0)
    model = build_model("resnet8", False, 1, 10).eval()
    return build_graph(model, torch.randn(1, 1, 8, 8)), model


@pytest.fixture(scope="session")
def digits():
    """The embedded network on its data, ready for evaluators: task, graph, orders, moments."""
    from amc.config import DataConfig
    from amc.graph.build import build_graph
    from amc.importance import rank
    from amc.reconstruction.moments import collect, readers
    from amc.task import load_data, load_model, make_task

    task = make_task(
        "digits", load_model("resnet8", None, 1, 10, "digits"), load_data(DataConfig()), torch.device("cpu")
    )
    graph = build_graph(task.model, task.example)
    moments = collect(task, readers(graph, task.model), 0)
    return task, graph, rank("obs", graph, task.model, moments), moments
