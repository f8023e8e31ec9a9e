"""Channel groups: what is offered as a site can really be cut, and what is refused is refused with a reason."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from networks import (
    CASES,
    EXAMPLE,
    Attention,
    Auxiliary,
    Net,
    Own,
    Shuffle,
    Square,
    assert_same,
    assert_true_to_masking,
    attends_to_places,
    block,
    built,
    chain,
    convnext,
    dense,
    flattened,
    gated,
    lively,
    masked,
    mixer,
    output,
    padded_shortcut,
    pool,
    pruned,
    random_kept,
    shuffled,
    squeeze_excite,
    tied,
    transformer,
    two_streams,
    used_twice,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm
from torchvision.models import VisionTransformer

from amc.errors import ModelError
from amc.graph.build import build_graph
from amc.graph.channels import ActivationProduct, BareParameter, ModuleKind, ShapeAttribute
from amc.graph.sites import Graph, consumers
from amc.space.resources import ResourceModel

LOGITS = "it is the network's output"


def names(graph: Graph) -> list[str]:
    return [site.name for site in graph.sites]


def reasons(graph: Graph) -> dict[str, str]:
    return {refusal.name: refusal.reason for refusal in graph.refusals}


# The built-in networks


@pytest.mark.parametrize("case", CASES)
def test_pruned_computes_what_masked_computes(case: str) -> None:
    model, example, graph, _ = built(case)
    rng = np.random.default_rng(0)
    for seed in range(2):
        kept = random_kept(graph, rng)
        images = torch.randn((2, *example.shape[1:]), generator=torch.Generator().manual_seed(seed))
        assert_same(output(pruned(model, graph, kept), images), output(masked(model, graph, kept), images))


@pytest.mark.parametrize("case", CASES)
def test_sites_come_in_forward_order_and_the_logits_are_refused(case: str) -> None:
    _, _, graph, _ = built(case)
    order = list(graph.trace.layers)
    assert names(graph) == sorted(names(graph), key=order.index)
    assert list(reasons(graph).values()) == [LOGITS]
    assert order[-1] in reasons(graph)


@pytest.mark.parametrize(
    ("case", "count"),
    [("resnet8", 6), ("resnet20", 12), ("resnet56", 30), ("mobilenetv1", 14), ("mobilenetv2", 25), ("vgg16bn", 13)],
)
def test_number_of_sites(case: str, count: int) -> None:
    """A site per inner width of a block, and one per residual stream."""
    assert len(built(case)[2].sites) == count


def test_a_residual_stream_is_one_site() -> None:
    graph = built("resnet20")[2]
    stream = graph.sites[names(graph).index("conv1")]
    writers = ["conv1", *(f"layer1.{i}.conv2" for i in range(3))]
    norms = ["bn1", *(f"layer1.{i}.bn2" for i in range(3))]
    assert set(stream.layers) == {*writers, *norms}
    readers = {*(f"layer1.{i}.conv1" for i in range(3)), "layer2.0.conv1", "layer2.0.downsample.0"}
    assert set(stream.consumers) == readers
    assert {layer.name for layer in consumers(graph, names(graph).index("conv1"))} == readers


def test_features_are_those_of_the_first_layer_and_the_cost_is_that_of_all() -> None:
    sites = {site.name: site for site in built("resnet20")[2].sites}
    stream = 3 * 16 * 9 * 32**2 + 3 * 16 * 16 * 9 * 32**2  # conv1, and the second layers of three blocks
    assert sites["conv1"].features == (16, 3, 32, 32, 1, 3, stream)
    assert sites["layer2.0.conv1"].features == (32, 16, 32, 32, 2, 3, 32 * 16 * 9 * 16**2)
    assert sites["layer3.2.conv1"].features == (64, 64, 8, 8, 1, 3, 64 * 64 * 9 * 8**2)


def test_layers_know_the_norm_that_follows() -> None:
    layers = {layer.name: layer for layer in built("resnet20")[2].layers}
    assert layers["conv1"].norm == "bn1"
    assert layers["layer2.0.downsample.0"].norm == "layer2.0.downsample.1"
    assert layers["fc"].norm is None


def test_a_depthwise_layer_follows_its_input() -> None:
    graph = built("mobilenetv1")[2]
    first = graph.sites[0]
    assert first.layers == ("features.0", "features.1", "features.3", "features.4")
    assert first.consumers == ("features.6",)
    assert {layer.name: layer.by_group for layer in graph.layers}["features.3"]


def test_the_model_is_not_touched() -> None:
    model = lively(chain(nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5)))
    model.a.weight.requires_grad_(False)
    model.fc.bias.requires_grad_(False)

    def state() -> tuple:
        tensors = {k: v.numpy().tobytes() for k, v in model.state_dict().items()}
        flags = {k: (p.requires_grad, p.data_ptr(), p.grad) for k, p in model.named_parameters()}
        modules = {k: (m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for k, m in model.named_modules()}
        return tensors, flags, modules, repr(model)

    before = state()
    build_graph(model, EXAMPLE)
    assert state() == before


def test_the_example_is_not_touched() -> None:
    example = EXAMPLE.clone()
    build_graph(lively(chain()), example)
    assert torch.equal(example, EXAMPLE)
    assert not example.requires_grad


def test_same_model_same_graph() -> None:
    first, second = (build_graph(lively(dense()), EXAMPLE) for _ in range(2))
    assert [(s.name, s.layers, s.consumers) for s in first.sites] == [
        (s.name, s.layers, s.consumers) for s in second.sites
    ]
    assert np.array_equal(first.growth, second.growth)


# Networks with a trait each: every random policy on all sites together must be right


class Scale(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.rand(shape) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.by


class Places(nn.Module):
    """Multiplies transposed maps by a parameter: which operators that runs depends on whether the parameter trains."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 2))

    def forward(self, x: Tensor) -> Tensor:
        maps = F.adaptive_avg_pool2d(x.mean(1, keepdim=True), (2, 3)).expand(-1, 2, -1, -1)
        return x * (maps.transpose(2, 3) @ self.weight).mean((1, 2, 3), keepdim=True)


class Table(nn.Module):
    """Multiplies by rows of a table, whose shape is written down, as biases of relative positions are."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(6, 8))
        self.shape = (2, 3, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.table[torch.arange(6)].view(self.shape).mean((0, 1))[:, None, None]


VIT = "encoder.layers.encoder_layer_0"


def vit() -> nn.Module:
    """Its width is written down in the module that reshapes patches to rows."""
    return VisionTransformer(8, 4, num_layers=1, num_heads=3, hidden_dim=12, mlp_dim=24, num_classes=10)


TRAITS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "concat": (dense, ["stem", "a.2", "b.2", "c.2"]),
    "flatten": (flattened, ["a.0", "b.0", "fc1"]),
    "squeeze-excite": (squeeze_excite, ["a.0", "down", "c.0"]),
    "used twice": (used_twice, ["a.0", "c.0"]),
    "two streams": (two_streams, ["left.0", "b"]),
    "depthwise": (lambda: chain(nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8)), ["a", "c"]),
    "prelu": (lambda: chain(nn.PReLU(8)), ["a", "c"]),
    "prelu with one slope": (lambda: chain(nn.PReLU()), ["a", "c"]),
    "scale [8, 1, 1]": (lambda: chain(Scale(8, 1, 1)), ["a", "c"]),
    "scale [1, 8, 1, 1]": (lambda: chain(Scale(1, 8, 1, 1)), ["a", "c"]),
    "scale [1, 1, 1, 1]": (lambda: chain(Scale(1, 1, 1, 1)), ["a", "c"]),
    "scale of places": (lambda: chain(Places()), ["a", "c"]),
    "scale in a table": (lambda: chain(Table()), ["a", "c"]),
    "scale []": (lambda: chain(Scale()), ["a", "c"]),
    "norm without affine": (lambda: chain(nn.BatchNorm2d(8, affine=False)), ["a", "c"]),
    "norm without statistics": (lambda: chain(nn.BatchNorm2d(8, track_running_stats=False)), ["a", "c"]),
    "in place": (lambda: chain(nn.BatchNorm2d(8), nn.ReLU(inplace=True)), ["a", "c"]),
    "double": (lambda: Net(lambda m, x: m.n(x.double()), n=chain().double()), ["n.a", "n.c"]),
    "linear layers only": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 10)),
        ["1"],
    ),
    "no linear layer": (
        lambda: Net(lambda m, x: pool(m.c(m.b(m.a(x)))), a=block(3, 8), b=block(8, 12), c=nn.Conv2d(12, 10, 1)),
        ["a.0", "b.0"],
    ),
    "a module of two names": (
        lambda: Net(
            lambda m, x: m.fc(pool(m.c(m.b(m.a(x))))), a=block(3, 8), b=(b := block(8, 8)), c=b, fc=nn.Linear(8, 10)
        ),
        ["a.0"],
    ),
    "an unused layer": (
        lambda: Net(lambda m, x: m.fc(pool(m.a(x))), a=block(3, 8), b=nn.Linear(4, 4), fc=nn.Linear(8, 10)),
        ["a.0"],
    ),
    "groups that go": (lambda: chain(nn.Conv2d(8, 8, 3, groups=4), nn.BatchNorm2d(8)), ["a", "c"]),
    "groups that shrink": (lambda: chain(nn.Conv2d(8, 12, 3, groups=2), inputs=12), ["a", "middle.0", "c"]),
    "depthwise multiplier": (lambda: chain(nn.Conv2d(8, 16, 3, groups=8), inputs=16), ["a", "c"]),
    "padded shortcut": (padded_shortcut, ["stem.0", "conv1.0"]),
    "shuffle": (lambda: chain(Shuffle(2), nn.Conv2d(8, 8, 3, groups=2)), ["a", "middle.1", "c"]),
    "split and shuffle": (shuffled, ["stem.0", "a.0.0", "b.0.0"]),
    "gate": (gated, ["a.0", "c.0"]),
    "group norm": (lambda: chain(nn.GroupNorm(4, 8)), ["a", "c"]),
    "group norm of wide groups": (lambda: chain(nn.GroupNorm(2, 8)), ["a", "c"]),
    "instance norm": (lambda: chain(nn.InstanceNorm2d(8)), ["a", "c"]),
    "mean over channels": (lambda: chain(Function(lambda x: x - x.mean(1, keepdim=True))), ["a", "c"]),
    "mirrored sum": (lambda: chain(Function(lambda x: x + x.flip(1))), ["a", "c"]),
    "weight norm": (lambda: chain(weight_norm(nn.Conv2d(8, 8, 3)), nn.ReLU()), ["a", "middle.0", "c"]),
    "transposed": (lambda: chain(nn.ConvTranspose2d(8, 12, 2, 2), nn.ReLU(), inputs=12), ["a", "middle.0", "c"]),
    "convnext": (convnext, ["stem", "up"]),
    "attention": (lambda: transformer(Attention(12, 3, False)), ["patches", "attention.qkv", "up"]),
    "fused attention": (lambda: transformer(Attention(12, 3, True)), ["patches", "attention.qkv", "up"]),
    "torch's attention": (lambda: transformer(Own(12, 3)), ["patches", "attention.mha.in_proj_weight", "up"]),
    "torchvision's transformer": (vit, ["conv_proj", f"{VIT}.self_attention.in_proj_weight", f"{VIT}.mlp.0"]),
    "heads beside a fixed width": (
        lambda: transformer(Own(12, 3), rows=lambda x: x.reshape(len(x), 12, -1)),
        ["attention.mha.in_proj_weight", "up"],
    ),
    "square attention": (lambda: transformer(Square(12, 3)), ["patches", "up"]),
    "rms norm": (lambda: transformer(Attention(12, 3, True), nn.RMSNorm), ["patches", "attention.qkv", "up"]),
    "mixer": (mixer, ["patches", "wide"]),
    "spatial attention": (attends_to_places, ["a.0", "c.0"]),
    "auxiliary classifier": (Auxiliary, ["a.0", "b.0", "early.0"]),
    "two channels": (
        lambda: Net(lambda m, x: m.fc(pool(m.a(x))), a=block(3, 2), fc=nn.Linear(2, 10)),
        ["a.0"],
    ),
}


@pytest.mark.parametrize("trait", TRAITS)
def test_trait(trait: str) -> None:
    make, sites = TRAITS[trait]
    torch.manual_seed(0)
    model = lively(make())
    assert names(assert_true_to_masking(model, EXAMPLE)) == sites


def test_a_flattened_channel_takes_all_its_positions() -> None:
    graph = build_graph(lively(flattened()), EXAMPLE)
    fc1 = next(layer for layer in graph.layers if layer.name == "fc1")
    kept = [np.arange(8), np.array([0, 11]), np.arange(20)]
    assert fc1.input.kept(kept).tolist() == [*range(16), *range(176, 192)]


# What cannot be cut is refused, and the reason says why


def refused(model: nn.Module, name: str) -> str:
    """Why ``name`` is refused. All that is offered must be right all the same."""
    torch.manual_seed(0)
    return reasons(assert_true_to_masking(lively(model), EXAMPLE))[name]


def test_only_the_channels_that_are_not_padding_are_cut() -> None:
    graph = assert_true_to_masking(lively(padded_shortcut()), EXAMPLE)
    assert names(graph) == ["stem.0", "conv1.0"]
    second = next(layer for layer in graph.layers if layer.name == "conv2")
    assert second.output.site.tolist() == [*[-1] * 4, *[0] * 8, *[-1] * 4]


def test_shared_weights_are_refused() -> None:
    graph = assert_true_to_masking(lively(tied()), EXAMPLE)
    assert names(graph) == ["d"]
    assert reasons(graph)["a"] == "b shares its weights with another layer"


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def gram(x: Tensor) -> Tensor:
    """X XᵀX: silent channels stay silent, and the products cost less without them."""
    rows = x.flatten(2)
    return (rows @ (rows.transpose(1, 2) @ rows)).view_as(x)


def _eight(x: Tensor) -> Tensor:
    assert x.shape[1] == 8, "eight channels, please"
    return x


@pytest.mark.parametrize(
    ("middle", "inputs", "reason"),
    [
        (Function(lambda x: x.softmax(1)), 8, "a softmax runs over its channels"),
        (Function(lambda x: x[:, :4] * x[:, 4:]), 4, "the network breaks without some"),
        (Function(lambda x: torch.cat([x[:, 4:], x[:, :4]], 1)), 8, "removing its channels is not the same"),
        (Function(lambda x: x * torch.linspace(1, 2, 8)[:, None, None]), 8, "it meets a constant with a fixed number"),
        (Function(lambda x: x.view(-1, 2, 4, 8, 8).transpose(1, 2).reshape(-1, 8, 8, 8)), 8, "the network breaks"),
        (Function(lambda x: x.cumsum(1)), 8, "cumsum runs over its channels"),
        (nn.LocalResponseNorm(3), 8, "a pooling runs over its channels"),
        (Function(gram), 8, "its channels are multiplied with one another"),
        (Function(_eight), 8, "the network breaks without some of its channels (eight channels, please)"),
    ],
)
def test_what_mixes_or_counts_channels_is_refused(middle: nn.Module, inputs: int, reason: str) -> None:
    assert refused(chain(middle, inputs=inputs), "a").startswith(reason)


def test_a_sum_with_the_image_is_refused() -> None:
    model = Net(lambda m, x: m.fc(pool(m.b(m.a(x) + x))), a=block(3, 3), b=block(3, 8), fc=nn.Linear(8, 10))
    assert refused(model, "a.0") == "it meets a constant with a fixed number of channels"


def test_one_channel_is_refused() -> None:
    model = Net(lambda m, x: m.fc(pool(m.b(m.a(x)))), a=block(3, 1), b=block(1, 8), fc=nn.Linear(8, 10))
    assert refused(model, "a.0") == "it has one channel only"


def test_features_that_are_returned_are_refused() -> None:
    model = Net(lambda m, x: (m.fc(pool(m.b(y := m.a(x)))), y), a=block(3, 8), b=block(8, 8), fc=nn.Linear(8, 10))
    graph = build_graph(lively(model), EXAMPLE)
    assert names(graph) == ["b.0"]
    assert reasons(graph) == {"a.0": LOGITS, "fc": LOGITS}


def test_all_outputs_are_logits() -> None:
    model = Net(
        lambda m, x: (m.fc(pool(m.b(y := m.a(x)))), m.aux(pool(y))),
        a=block(3, 8), b=block(8, 8), aux=nn.Linear(8, 10), fc=nn.Linear(8, 10),
    )  # fmt: skip
    graph = build_graph(lively(model), EXAMPLE)
    assert (names(graph), reasons(graph)) == (["a.0", "b.0"], {"fc": LOGITS, "aux": LOGITS})


def test_layer_norm_is_cut_and_costs_what_is_said() -> None:
    """Its statistics run over the channels: removing is not silencing, yet the pruned network is sound."""
    model = Net(
        lambda m, x: m.fc(m.n(F.relu(m.h(pool(m.a(x)))))),
        a=block(3, 8), h=nn.Linear(8, 16), n=nn.LayerNorm(16), fc=nn.Linear(16, 10),
    )  # fmt: skip
    graph = build_graph(lively(model), EXAMPLE)
    assert names(graph) == ["a.0", "h"]
    smaller = pruned(model, graph, [np.arange(3), np.arange(5)])
    assert smaller.n.normalized_shape == (5,)
    assert output(smaller, EXAMPLE).shape == (1, 10)
    assert ResourceModel(graph, model).cost([3, 5])["params"] == sum(p.numel() for p in smaller.parameters())


# Nothing to prune


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Flatten(), nn.Linear(192, 10)),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        Net(lambda m, x: m.a(x).softmax(1), a=nn.Conv2d(3, 8, 3)),
    ],
)
def test_nothing_to_prune(model: nn.Module) -> None:
    with pytest.raises(ModelError, match="nothing to prune"):
        build_graph(model.eval(), EXAMPLE)


def test_a_network_that_fails_on_its_example() -> None:
    with pytest.raises(ModelError, match="fails on its example input"):
        build_graph(lively(chain()), EXAMPLE[:, :2])


def test_a_copy_has_the_same_graph() -> None:
    model, example, graph, _ = built("resnet8")
    assert names(build_graph(copy.deepcopy(model), example)) == names(graph)


def test_a_dead_branch_hides_nothing() -> None:
    """Behind a BatchNorm of zeros, as fresh residual branches have, a running sum looks harmless."""

    class Dead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
            self.norm, self.fc = nn.BatchNorm2d(8), nn.Linear(8, 10)
            nn.init.zeros_(self.norm.weight)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            y = self.a(x)
            return self.fc((x + self.norm(self.b(y.cumsum(1)))).mean((2, 3)))

    graph = build_graph(Dead().eval(), torch.randn(1, 3, 8, 8))
    assert "a" not in [site.name for site in graph.sites]


def test_a_model_in_training_mode_is_told() -> None:
    with pytest.raises(ModelError, match="training mode"):
        build_graph(nn.Sequential(nn.Conv2d(3, 4, 3)), torch.randn(1, 3, 8, 8))


def test_what_a_network_keeps_from_its_first_pass_on_is_no_difference() -> None:
    def looked_up(m: Net, x: Tensor) -> Tensor:
        if not hasattr(m, "kept"):
            m.kept = m.biases[m.places]
        return m.fc(pool(m.b(m.a(x))) + m.kept)

    places = torch.arange(8).flip(0)
    model = Net(
        looked_up, a=block(3, 8), b=block(8, 8), biases=nn.Parameter(torch.ones(8)), places=places, fc=nn.Linear(8, 10)
    )
    assert names(build_graph(lively(model), EXAMPLE)) == ["a.0"]


def test_one_bad_site_takes_no_other_with_it() -> None:
    """Tried together they fail; by halves the one is found that does."""
    model = Net(
        lambda m, x: m.fc(pool(m.d(_eight(m.c(m.b(m.a(x))))))),
        a=block(3, 8), b=block(8, 8), c=block(8, 8), d=block(8, 8), fc=nn.Linear(8, 10),
    )  # fmt: skip
    graph = build_graph(lively(model), EXAMPLE)
    assert names(graph) == ["a.0", "b.0", "d.0"]
    assert "eight channels, please" in reasons(graph)["c.0"]


def test_heads_are_sites_and_their_number_follows() -> None:
    model = lively(transformer(Attention(12, 3, True)))
    graph = build_graph(model, EXAMPLE)
    assert [(s.name, s.channels) for s in graph.sites] == [("patches", 12), ("attention.qkv", 3), ("up", 24)]
    smaller = pruned(model, graph, [np.arange(12), np.array([0, 2]), np.arange(24)])
    assert (smaller.attention.num_heads, smaller.attention.attn_dim, smaller.attention.head_dim) == (2, 8, 4)
    assert smaller.attention.qkv.weight.shape == (24, 12)
    assert torch.equal(smaller.attention.qkv.weight[8:12], model.attention.qkv.weight[12:16])  # keys of head 0
    # two products of 5 × 5 tokens and 4 features for the head that is gone, and its 12 queries, keys and values
    costs = ResourceModel(graph, model)
    saved = costs.cost([12, 3, 24])["macs"] - costs.cost([12, 2, 24])["macs"]
    assert saved == 2 * 5 * 5 * 4 + 5 * 12 * 12 + 5 * 4 * 12


def test_layers_are_modules_parameters_products_and_attributes() -> None:
    graph = build_graph(lively(transformer(Attention(12, 3, True))), EXAMPLE)
    kinds = {x.name: x.kind for x in graph.layers if x.kind not in (ModuleKind.LINEAR, ModuleKind.NORM)}
    attributes = [x.kind for x in graph.layers if isinstance(x.kind, ShapeAttribute)]
    assert kinds == {
        "patches": ModuleKind.CONV,
        "": ModuleKind.OTHER,
        "token": BareParameter(2),
        "places": BareParameter(2),
        "product 0": ActivationProduct(),
        "attention": attributes[-1],
    }
    assert attributes == [ShapeAttribute("num_heads"), ShapeAttribute("attn_dim")]
    assert [x.name for x in graph.layers if not x.has_tensors] == ["product 0", "attention", "attention"]


def test_weights_that_are_computed_are_no_activations() -> None:
    plain, normed = (build_graph(lively(chain(conv)), EXAMPLE).trace for conv in
                     (nn.Conv2d(8, 8, 3), weight_norm(nn.Conv2d(8, 8, 3))))  # fmt: skip
    assert plain.sizes.tolist() == normed.sizes.tolist()
