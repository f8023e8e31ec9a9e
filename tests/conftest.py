"""What all tests share: one thread, and property tests that do the same on every machine."""

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("amc", deadline=None, derandomize=True, database=None, max_examples=25)
settings.load_profile("amc")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """No test reads or writes the user's cache, or waits for what else runs on the machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMC_LOCKS", str(tmp_path_factory.mktemp("locks")))
        patch.setenv("AMC_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def resnet8():
    """The embedded architecture, untrained, with its graph."""
    from amc.graph import build_graph
    from amc.task.models import build_model

    torch.manual_seed(0)
    model = build_model("resnet8", False, 1, 10).eval()
    return build_graph(model, torch.randn(1, 1, 8, 8)), model
