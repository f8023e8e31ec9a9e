"""The contract that every criterion keeps, and what each is to find."""

import contextlib

import pytest
import torch

from amc.config import Config, SearchConfig
from amc.errors import ConfigError
from amc.evaluation.memo import Memo
from amc.importance import COLLECTORS, Need, Reader, SiteView, collect, load_criterion, rank, view
from amc.reconstruction.moments import Moments
from amc.runtime.cache import Cache

NAMES = ["obs", "l1", "l2"]


def site(channels: int = 6, taps: int = 4, readers: int = 2, with_moments: bool = True, seed: int = 0) -> SiteView:
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(readers):
        weight = torch.randn(5, channels, taps, generator=generator)
        x = torch.randn(400, channels * taps, generator=generator).double()
        moments = Moments(x.mean(0), torch.atleast_2d(x.T.cov()), 400) if with_moments else None
        found.append(Reader(weight, torch.arange(channels), torch.arange(channels), moments))
    return SiteView(channels, tuple(found))


@pytest.mark.parametrize("name", NAMES)
class TestContract:
    @pytest.mark.parametrize("channels", [1, 2, 7, 300])
    def test_every_channel_comes_once(self, name: str, channels: int):
        order = load_criterion(name)(site(channels, taps=1))
        assert sorted(order.tolist()) == list(range(channels))

    def test_it_is_deterministic_and_changes_nothing(self, name: str):
        shown = site()
        before = [r.weight.clone() for r in shown.readers]
        first, second = (load_criterion(name)(shown).tolist() for _ in range(2))
        assert first == second
        assert all(torch.equal(r.weight, b) for r, b in zip(shown.readers, before, strict=True))

    def test_channels_that_nobody_listens_to_go_first(self, name: str):
        shown = site()
        for reader in shown.readers:
            reader.weight[:, 3] = 0
        assert load_criterion(name)(shown)[-1] == 3

    def test_it_works_without_moments(self, name: str):
        assert len(load_criterion(name)(site(with_moments=False))) == 6


def test_obs_sees_that_a_copy_can_be_missed():
    """Channels 0 and 1 are the same and loud: L1 keeps both, OBS lets one go, since the other makes up for it."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 4, generator=generator).double()
    x[:, 1] = x[:, 0] + 0.01 * torch.randn(500, generator=generator)
    weight = torch.tensor([[5.0, 5.0, 1.0, 1.0], [5.0, 4.0, 1.0, -1.0]])[..., None]
    shown = SiteView(4, (Reader(weight, torch.arange(4), torch.arange(4), Moments(x.mean(0), x.T.cov(), 500)),))
    assert load_criterion("obs")(shown)[-1] in (0, 1)
    assert load_criterion("l1")(shown)[:2].tolist() == [0, 1]


def test_obs_equals_brute_force_for_the_first_removal():
    """The channel whose loss costs least squared error after the others are re-solved."""
    shown = site(channels=5, taps=2, readers=1, seed=3)
    reader = shown.readers[0]
    c, w = reader.moments.covariance, reader.weight.flatten(1).double()
    c = c + 1e-2 * c.diagonal().mean() * torch.eye(10)
    errors = []
    for channel in range(5):
        keep = [e for e in range(10) if e // 2 != channel]
        solved = w @ c[:, keep] @ torch.linalg.inv(c[keep][:, keep])
        full = torch.zeros_like(w)
        full[:, keep] = solved
        errors.append(float(((w - full) @ c * (w - full)).sum()))
    assert load_criterion("obs")(shown)[-1] == errors.index(min(errors))


def test_a_plug_in_that_loses_a_channel_is_refused(tmp_path, resnet8):
    graph, model = resnet8
    (tmp_path / "mine.py").write_text("def mine(site):\n    return [0] * site.channels\n")
    with pytest.raises(ConfigError, match="did not give every one of the 16 channels of 'conv1' once"):
        rank(f"{tmp_path}/mine.py:mine", graph, model, {})


def test_a_plug_in_may_give_scores(tmp_path, resnet8):
    graph, model = resnet8
    (tmp_path / "scored.py").write_text(
        "from amc.importance import Criterion, Need\n"
        "MINE = Criterion('mine', 'x', '', lambda site: -site.total(site.producers, lambda p: p.rows().sum(1)),\n"
        "                 frozenset({Need.PRODUCERS}))\n"
    )
    orders = rank(f"{tmp_path}/scored.py:MINE", graph, model, {})
    weight = model.get_submodule("layer1.0.conv1").weight.detach().double()
    site = [s.name for s in graph.sites].index("layer1.0.conv1")
    assert orders[site].tolist() == weight.sum((1, 2, 3)).argsort(stable=True).tolist()


def test_a_network_without_what_a_criterion_needs_is_refused(tmp_path, resnet8):
    graph, model = resnet8
    (tmp_path / "needy.py").write_text(
        "from amc.importance import Criterion, Need, required\n"
        "MINE = Criterion('mine', 'x', '', lambda site: required(site.flow, 'synaptic flow'), frozenset({Need.FLOW}))\n"
    )
    with pytest.raises(ConfigError, match="needs synaptic flow, which no site of this network has"):
        rank(f"{tmp_path}/needy.py:MINE", graph, model, {})


def test_only_what_a_criterion_needs_is_collected(digits, monkeypatch):
    """A run asks the collectors of the criterion's needs, once each, and no other."""
    task, graph, _, moments = digits
    asked = []
    for need in COLLECTORS:
        monkeypatch.setitem(COLLECTORS, need, lambda task, graph, need=need: asked.append(need) or {})
    for name, needs in {"l1": [], "obs": [], "apoz": [Need.ACTIVATIONS], "fisher": [Need.GRADIENTS]}.items():
        config = Config(cache=None).replace(search=SearchConfig(criterion=name))
        with contextlib.suppress(ConfigError):  # nothing was collected
            Memo(Cache(None), task, config).orders(graph, moments)
        assert asked == needs
        asked.clear()


def test_views_hold_what_is_needed_and_nothing_else(digits):
    task, graph, _, moments = digits
    collected = {need: collect(need, task, graph) for need in (Need.ACTIVATIONS,)}
    seen = view(graph, task.model, moments, 0, frozenset({Need.READERS}), collected)
    assert seen.producers == seen.norms == ()
    assert seen.activations is None
    assert all(reader.moments is None for reader in seen.readers)
    seen = view(graph, task.model, moments, 0, frozenset({Need.NORMS, Need.ACTIVATIONS}), collected)
    assert seen.readers == ()
    assert seen.activations is not None
    assert len(seen.norms) == 2  # of the first convolution and of the branch that is added to it


def test_an_unknown_criterion_comes_with_a_suggestion():
    with pytest.raises(ConfigError, match="Did you mean 'obs'"):
        load_criterion("ob")
