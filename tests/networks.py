"""Networks for the tests: the built-in ones, built once, and small ones with a trait each; and how to judge them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amc.graph.build import build_graph
from amc.graph.sites import Graph
from amc.graph.surgery import ChannelCutter
from amc.graph.trace import trace
from amc.graph.verify import masked_outputs
from amc.latency import LatencyProblem, layer_shapes
from amc.operators.channels import legal_widths
from amc.space.resources import ResourceModel
from amc.task.models import BUILT_IN

# name → example shape; every built-in network, and the one on grey 8×8 images
CASES: dict[str, tuple[int, ...]] = {**dict.fromkeys(BUILT_IN, (1, 3, 32, 32)), "resnet8-digits": (1, 1, 8, 8)}


def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """Evaluation mode, with BatchNorms that do something: fresh ones are (nearly) the identity."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        return torch.rand(like.shape, generator=generator) * (high - low) + low

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                if module.running_mean is not None:
                    module.running_mean.copy_(uniform(module.running_mean, -0.3, 0.3))
                    module.running_var.copy_(uniform(module.running_var, 0.5, 1.5))
                if module.affine:
                    module.weight.copy_(uniform(module.weight, 0.5, 1.5))
                    module.bias.copy_(uniform(module.bias, -0.3, 0.3))
    return model.eval()


@cache
def built(case: str) -> tuple[nn.Module, Tensor, Graph, ResourceModel]:
    """A built-in network with random weights, its example, graph and costs. Shared: nobody may change it."""
    torch.manual_seed(0)
    shape = CASES[case]
    model = lively(BUILT_IN[case.partition("-")[0]](num_classes=10, in_channels=shape[1]))
    example = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    graph = build_graph(model, example)
    return model, example, graph, ResourceModel(graph, model)


def told_of(case: str, cut: Callable[[Mapping[str, int]], bytes], original_ms: float | None = None) -> LatencyProblem:
    """What a latency model is told of a built-in network. There are no files."""
    _, example, graph, _ = built(case)
    return LatencyProblem(
        full={s.name: s.channels for s in graph.sites},
        settings={s.name: legal_widths(s.channels, 0.2, 0) for s in graph.sites},
        layers=layer_shapes(graph),
        original=Path("original.onnx"),
        input_shapes={"input": tuple(example.shape)},
        threads=1,
        cut=cut,
        original_ms=original_ms,
    )


def random_kept(graph: Graph, rng: np.random.Generator) -> list[np.ndarray]:
    """Any channels of any number, at every site."""
    return [np.sort(rng.choice(s.channels, rng.integers(1, s.channels + 1), replace=False)) for s in graph.sites]


def pruned(model: nn.Module, graph: Graph, kept: list[np.ndarray]) -> nn.Module:
    smaller = copy.deepcopy(model)
    ChannelCutter(smaller, graph.layers).cut(kept)
    return smaller


def masked(model: nn.Module, graph: Graph, kept: list[np.ndarray]) -> nn.Module:
    """The whole network, whose layers do not listen to the channels that are not kept."""
    without_input = copy.deepcopy(model)
    with torch.no_grad():
        for layer in graph.layers:
            if layer.input is not None:
                weight = without_input.get_submodule(layer.name).weight
                listens = torch.zeros(weight.shape[1])
                listens[torch.from_numpy(layer.input.kept(kept))] = 1
                weight *= listens.reshape(1, -1, *[1] * (weight.ndim - 2))
    return without_input


def measured(model: nn.Module, example: Tensor) -> dict[str, float]:
    """What a network really costs: it is run and counted."""
    seen = trace(model, example)
    peak = int((seen.live.astype(np.int64) @ seen.sizes).max())
    return {"macs": seen.macs, "params": sum(p.numel() for p in model.parameters()), "memory": 4 * peak}


def output(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model(images)


def assert_same(first: Tensor, second: Tensor) -> None:
    torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-4 * max(1.0, float(second.abs().max())))


def assert_true_to_masking(model: nn.Module, example: Tensor, policies: int = 4) -> Graph:
    """Build the graph, and see that random policies compute what masking computes and cost what is predicted."""
    graph = build_graph(model, example)
    costs = ResourceModel(graph, model)
    rng = np.random.default_rng(0)
    for _ in range(policies):
        kept = random_kept(graph, rng)
        smaller = pruned(model, graph, kept)
        assert costs.cost([len(k) for k in kept]) == measured(smaller, example)
        images = torch.randn((2, *example.shape[1:]), generator=torch.Generator().manual_seed(2))
        images = images if example.is_floating_point() else example.expand(2, *example.shape[1:])
        assert_same(output(smaller, images), masked_outputs(model, graph, kept, images)[0])
    return graph


class Net(nn.Module):
    """Modules and parameters by name, and what to do with them: ``forward(net, x)``."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], /, **members: Any) -> None:
        super().__init__()
        self._forward = forward
        for name, member in members.items():
            setattr(self, name, member)

    def forward(self, x: Tensor) -> Any:
        return self._forward(self, x)


def block(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


def pool(x: Tensor) -> Tensor:
    return x.mean((2, 3))


EXAMPLE = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def chain(*middle: nn.Module, inputs: int = 8) -> Net:
    """Convolution ``a`` to 8 channels, whatever is in the middle, convolution ``c`` to 6, linear layer ``fc``."""
    return Net(
        lambda m, x: m.fc(pool(m.c(m.middle(m.a(x))))),
        a=nn.Conv2d(3, 8, 3, padding=1),
        middle=nn.Sequential(*middle),
        c=nn.Conv2d(inputs, 6, 3),
        fc=nn.Linear(6, 10),
    )


def padded_shortcut() -> Net:
    """ResNet option A: a shortcut whose new channels are zeros, half before and half after."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        return m.fc(pool(F.relu(m.bn(m.conv2(m.conv1(x))) + shortcut)))

    conv2 = nn.Conv2d(16, 16, 3, 1, 1, bias=False)
    return Net(
        forward, stem=block(3, 8), conv1=block(8, 16, 3, 2), conv2=conv2, bn=nn.BatchNorm2d(16), fc=nn.Linear(16, 10)
    )


def dense() -> Net:
    """DenseNet in small: every layer reads the concatenation of all before it."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        for layer in (m.a, m.b, m.c):
            x = torch.cat([x, layer(x)], 1)
        return m.fc(pool(F.relu(m.bn(x))))

    def layer(inputs: int) -> nn.Sequential:
        return nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, 6, 3, 1, 1, bias=False))

    stem = nn.Conv2d(3, 8, 3, 1, 1)
    return Net(forward, stem=stem, a=layer(8), b=layer(14), c=layer(20), bn=nn.BatchNorm2d(26), fc=nn.Linear(26, 10))


def flattened() -> Net:
    """Like VGG for ImageNet: 4×4 positions of every channel are flattened into the first linear layer."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = torch.flatten(F.adaptive_avg_pool2d(m.b(m.a(x)), 4), 1)
        return m.fc2(F.relu(m.fc1(x)))

    return Net(forward, a=block(3, 8), b=block(8, 12), fc1=nn.Linear(192, 20), fc2=nn.Linear(20, 10))


def squeeze_excite() -> Net:
    """Channels are scaled by what a squeezed copy of them says (a product of two branches)."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.a(x)
        scale = torch.sigmoid(m.up(F.relu(m.down(F.adaptive_avg_pool2d(x, 1)))))
        return m.fc(pool(m.c(x * scale)))

    return Net(
        forward, a=block(3, 16), down=nn.Conv2d(16, 4, 1), up=nn.Conv2d(4, 16, 1), c=block(16, 6), fc=nn.Linear(6, 10)
    )


def used_twice() -> Net:
    """One convolution that runs twice, each time on its own output."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.a(x)
        for _ in range(2):
            x = F.relu(m.b(x))
        return m.fc(pool(m.c(x)))

    return Net(forward, a=block(3, 8), b=nn.Conv2d(8, 8, 3, 1, 1), c=block(8, 6), fc=nn.Linear(6, 10))


def two_streams() -> Net:
    """One convolution that reads two branches, whose results are concatenated."""
    return Net(
        lambda m, x: m.fc(pool(torch.cat([m.b(m.left(x)), m.b(m.right(x))], 1))),
        left=block(3, 8),
        right=block(3, 8),
        b=nn.Conv2d(8, 12, 3, 1, 1),
        fc=nn.Linear(24, 10),
    )


def tied() -> Net:
    """Two layers that share one weight tensor."""
    net = Net(
        lambda m, x: m.fc(pool(m.d(F.relu(m.c(F.relu(m.b(F.relu(m.a(x))))))))),
        a=nn.Conv2d(3, 8, 3),
        b=nn.Conv2d(8, 8, 3, padding=1),
        c=nn.Conv2d(8, 8, 3, padding=1),
        d=nn.Conv2d(8, 6, 3),
        fc=nn.Linear(6, 10),
    )
    net.c.weight = net.b.weight
    return net


class Shuffle(nn.Module):
    """Channel shuffle (ShuffleNet, arXiv:1707.01083): the channels of all groups in turn."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)


def shuffled() -> Net:
    """ShuffleNetV2 in small: half of the channels pass by, the halves are shuffled."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        for branch in (m.a, m.b):
            by, through = x.chunk(2, 1)
            x = m.shuffle(torch.cat([by, branch(through)], 1))
        return m.fc(pool(x))

    def branch() -> nn.Sequential:
        return nn.Sequential(block(8, 12, 1), block(12, 12, groups=12), block(12, 8, 1))

    return Net(forward, stem=block(3, 16), a=branch(), b=branch(), shuffle=Shuffle(2), fc=nn.Linear(16, 10))


def gated() -> Net:
    """A gated linear unit: one half of the channels scales the other."""

    def forward(m: Any, x: Tensor) -> Tensor:
        first, second = m.a(x).chunk(2, 1)
        return m.fc(pool(m.c(first * second.sigmoid())))

    return Net(forward, a=block(3, 16), c=block(8, 6), fc=nn.Linear(6, 10))


def convnext() -> Net:
    """A ConvNeXt block (arXiv:2201.03545): depthwise, LayerNorm over channels that lie last, layer scale."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        inner = m.norm(m.depthwise(x).permute(0, 2, 3, 1))
        x = x + (m.scale * m.down(F.gelu(m.up(inner)))).permute(0, 3, 1, 2)
        return m.fc(m.last(pool(x)))

    return Net(
        forward, stem=nn.Conv2d(3, 8, 2, 2), depthwise=nn.Conv2d(8, 8, 3, 1, 1, groups=8), norm=nn.LayerNorm(8),
        up=nn.Linear(8, 32), down=nn.Linear(32, 8), scale=nn.Parameter(torch.rand(8) + 0.5), last=nn.LayerNorm(8),
        fc=nn.Linear(8, 10),
    )  # fmt: skip


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1) @ v


class Attention(nn.Module):
    """Attention that says how many heads it has."""

    def __init__(self, width: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.attn_dim, self.fused = heads, 4, 4 * heads, fused
        self.qkv, self.proj = nn.Linear(width, 3 * self.attn_dim), nn.Linear(self.attn_dim, width)

    def forward(self, x: Tensor) -> Tensor:
        images, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(images, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        attend = F.scaled_dot_product_attention if self.fused else _attend
        x = attend(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(images, tokens, self.attn_dim))


class Square(nn.Module):
    """Attention that takes for granted that its heads are together as wide as its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        images, tokens, width = x.shape
        parts = self.qkv(x).reshape(images, tokens, 3, self.num_heads, width // self.num_heads)
        return self.proj(_attend(*parts.permute(2, 0, 3, 1, 4)).transpose(1, 2).reshape(images, tokens, width))


class Own(nn.Module):
    """`nn.MultiheadAttention` of a sequence with itself."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.mha = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.mha(x, x, x, need_weights=False)[0]


def transformer(
    attention: nn.Module,
    norm: Callable[[int], nn.Module] = nn.LayerNorm,
    rows: Callable[[Tensor], Tensor] = lambda x: x.flatten(2),
) -> Net:
    """A vision transformer in small: patches, class token, positions, one block of width 12."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = rows(m.patches(x)).transpose(1, 2)
        x = torch.cat([m.token.expand(len(x), -1, -1), x], 1) + m.places
        x = x + m.attention(m.norm1(x))
        x = x + m.down(F.gelu(m.up(m.norm2(x))))
        return m.fc(m.norm3(x)[:, 0])

    return Net(
        forward, patches=nn.Conv2d(3, 12, 4, 4), token=nn.Parameter(torch.randn(1, 1, 12)),
        places=nn.Parameter(torch.randn(1, 5, 12)), attention=attention, up=nn.Linear(12, 24), down=nn.Linear(24, 12),
        norm1=norm(12), norm2=norm(12), norm3=norm(12), fc=nn.Linear(12, 10),
    )  # fmt: skip


def mixer() -> Net:
    """MLP-Mixer (arXiv:2105.01601): layers that mix positions run once for every channel."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.patches(x).flatten(2).transpose(1, 2)
        x = x + m.down(F.gelu(m.up(m.norm1(x).transpose(1, 2)))).transpose(1, 2)
        x = x + m.narrow(F.gelu(m.wide(m.norm2(x))))
        return m.fc(x.mean(1))

    return Net(
        forward, patches=nn.Conv2d(3, 12, 2, 2), up=nn.Linear(16, 8), down=nn.Linear(8, 16), wide=nn.Linear(12, 24),
        narrow=nn.Linear(24, 12), norm1=nn.LayerNorm(12), norm2=nn.LayerNorm(12), fc=nn.Linear(12, 10),
    )  # fmt: skip


def attends_to_places() -> Net:
    """Spatial attention (arXiv:1807.06521): means and largest values over the channels weigh the positions."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.a(x)
        seen = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return m.fc(pool(m.c(x * m.weigh(seen).sigmoid())))

    return Net(forward, a=block(3, 8), weigh=nn.Conv2d(2, 1, 3, 1, 1), c=block(8, 6), fc=nn.Linear(6, 10))


class Auxiliary(nn.Module):
    """A classifier in the middle that runs in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = block(3, 8), block(8, 6), nn.Linear(6, 10)
        self.early, self.aux = nn.Sequential(nn.Conv2d(8, 5, 1), nn.BatchNorm2d(5), nn.ReLU()), nn.Linear(5, 10)

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        late = self.fc(pool(self.b(x)))
        return (late, self.aux(pool(self.early(x)))) if self.training else late


def bundled() -> nn.Module:
    """The network that the old bundle in ``data/`` was made of: it must stay as it is."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
    )  # fmt: skip
    weights = torch.Generator().manual_seed(1)
    with torch.no_grad():  # torch's own initialisation may change between versions
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=weights) * 0.3)
    return net.eval()
