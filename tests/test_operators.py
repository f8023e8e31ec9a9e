"""Every operator, the toy one among them, keeps the contract; those that break it are told why."""

import pytest
import torch

from amc.operators import OPERATORS, Channels, NetworkFacts, Policy, cost_model, offered_sites, operator_of
from amc.operators.operator import SettingBounds
from amc.operators.registry import load_operator, operators
from amc.operators.toy import CoarseSetting, CoarseWeights
from amc.testing import check_operator, example_network


@pytest.fixture(scope="module")
def network() -> tuple[NetworkFacts, torch.Tensor]:
    return example_network()


@pytest.mark.parametrize("name", operators())
def test_every_operator_keeps_the_contract(network, name):
    operator = load_operator(name)
    before = [load_operator(operator.extends)] if operator.extends else []
    check_operator(operator, *network, before=before)


@pytest.mark.parametrize("before", [(), OPERATORS], ids=["alone", "beside channels and branches"])
def test_an_operator_of_another_kind_keeps_the_contract(network, before):
    check_operator(CoarseWeights(), *network, before=before)


class Forgetful(CoarseWeights):
    def record(self, network, site, setting):
        return CoarseSetting("whole")


class Surcharge(CoarseWeights):
    def costs(self, network, sites, under):
        class Costs:
            def costs(self, sizes):
                found = under.costs(sizes)
                return {**found, "params": found["params"] + 1}

        return Costs()


class Lasting(CoarseWeights):
    """Changes a network's tensors in place."""

    def applier(self, scratch, network, sites):
        class Applier:
            restores = False

            def kept(self, settings):
                return None

            def apply(self, settings, solved):
                if settings[0] == "sign":
                    scratch.conv1.weight.data.mul_(0.5)

            def finish(self, model, settings):
                return

        return Applier()


class Restless(CoarseWeights):
    def errors(self, network, site, measures):
        return [1.0] * len(site.settings)


@pytest.mark.parametrize(
    ("operator", "told"),
    [
        (Forgetful(), "apply and applier give different outputs"),
        (Restless(), "0 at the original"),
        (Surcharge(), "params of the original is"),
        (Lasting(), "depends on the policies applied before|apply and applier give different outputs"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_breaks_the_contract_is_told(network, operator, told):
    with pytest.raises(AssertionError, match=told):
        check_operator(operator, *network)


def test_policies_of_several_operators_are_written_and_read(network):
    operators = [*OPERATORS, CoarseWeights()]
    policy = Policy("abc", {"conv1": Channels().read("conv1", {"width": 1, "of": 4, "kept": [2]}),
                            "coarse:fc": CoarseSetting(("round", 4))})  # fmt: skip
    assert Policy.from_json(policy.to_json(), operators) == policy
    assert operator_of("coarse", operators).kind == "coarse"


def test_costs_of_several_operators_are_one_model(network):
    facts, _ = network
    operators = [*OPERATORS, CoarseWeights()]
    sites = offered_sites(facts, SettingBounds(), operators)
    model = cost_model(facts, sites, operators)
    full = [site.sizes[-1] for site in sites]
    channels = len(facts.graph.sites)
    narrow = [*(site.sizes[0] for site in sites[:channels]), *full[channels:]]
    alone = facts.resources.costs([narrow[:channels]])
    assert {name: float(c[0]) for name, c in model.costs([narrow]).items()} == {
        name: float(c[0]) for name, c in alone.items()
    }
    layer = next(x for x in facts.graph.layers if x.name == "conv1")
    place = [site.name for site in sites].index("coarse:conv1")
    sign = [*full[:place], 1, *full[place + 1 :]]
    assert model.costs([full])["macs"][0] - model.costs([sign])["macs"][0] == pytest.approx(0.75 * layer.macs)
