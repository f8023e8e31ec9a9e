"""Kinds of networks that people bring: what is offered works, and what is refused has one line with a true reason."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import EXAMPLE, Net, assert_same, assert_true_to_masking, block, chain, lively, output, pool
from test_graph import Function, names, reasons
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from amc.deploy.export import export_onnx
from amc.deploy.program import DECIDES, FIXED_BATCH, read_program, write_program
from amc.errors import ExportError, ModelError
from amc.graph.build import build_graph
from amc.task import nested
from amc.task.checks import copied, prepared

EXAMPLE = EXAMPLE.clone()  # networks of other tests write into their inputs
ROWS = torch.randn(1, 12, 16, generator=torch.Generator().manual_seed(0))
WORDS = torch.arange(12)[None]


def over(function: Callable[[Tensor], Tensor]) -> Net:
    """Convolution ``a``, convolution ``c`` on what the function makes of its 8 channels, linear layer ``fc``."""
    return chain(Function(function))


def pooled(function: Callable[[Tensor], Tensor]) -> Net:
    """Convolutions ``a`` and ``b``; the function makes ``[N, 8]`` of the 8 channels of ``b``."""
    return Net(
        lambda m, x: m.fc(function(m.b(m.a(x)))), a=block(3, 8), b=nn.Conv2d(8, 8, 3, padding=1), fc=nn.Linear(8, 10)
    )


def through(**members: Any) -> Net:
    """Convolution ``a`` to 8 channels, the members in order, convolution ``c``, linear layer ``fc``."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.a(x)
        for name in members:
            x = F.relu(getattr(m, name)(x))
        return m.fc(pool(m.c(x)))

    return Net(forward, a=nn.Conv2d(3, 8, 3, 1, 1), **members, c=nn.Conv2d(8, 6, 3), fc=nn.Linear(6, 10))


def functional(weight: Tensor, bias: Tensor | None = None, **options: Any) -> Net:
    """A convolution by function, whose weights are the network's own."""
    return Net(
        lambda m, x: m.fc(pool(m.c(F.relu(F.conv2d(m.a(x), m.w, m.bias, **options))))),
        a=nn.Conv2d(3, 8, 3), w=nn.Parameter(weight), bias=None if bias is None else nn.Parameter(bias),
        c=nn.Conv2d(8, 6, 3), fc=nn.Linear(6, 10),
    )  # fmt: skip


def written_in_parts(x: Tensor) -> Tensor:
    y = x.new_empty(x.shape[0], x.shape[1], x.shape[2] + 2, x.shape[3])
    y[:, :, 1:-1] = x
    y[:, :, :1], y[:, :, -1:] = x[:, :, -1:], x[:, :, :1]
    return y


def upsampled_beside() -> Net:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.a(x)
        beside = [F.pixel_shuffle(m.up(x), 2), F.interpolate(x, scale_factor=2)]
        return m.fc(pool(m.c(torch.cat(beside, 1))))

    return Net(
        forward,
        a=nn.Conv2d(3, 8, 3), up=nn.Conv2d(8, 16, 1), c=nn.Conv2d(12, 6, 3), fc=nn.Linear(6, 10),
    )  # fmt: skip


def unpooled() -> Net:
    def forward(m: Any, x: Tensor) -> Tensor:
        small, places = F.max_pool2d(m.a(x), 2, return_indices=True)
        return m.fc(pool(m.c(F.max_unpool2d(m.b(small), places, 2))))

    return Net(forward, a=nn.Conv2d(3, 8, 3, 1, 1), b=nn.Conv2d(8, 8, 1), c=nn.Conv2d(8, 6, 3), fc=nn.Linear(6, 10))


def sampled() -> Net:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.fc(pool(m.c(F.grid_sample(m.a(x), m.places.expand(x.shape[0], -1, -1, -1), align_corners=False))))

    return Net(
        forward, a=nn.Conv2d(3, 8, 3), places=nn.Parameter(torch.rand(1, 5, 5, 2)), c=nn.Conv2d(8, 6, 3),
        fc=nn.Linear(6, 10),
    )  # fmt: skip


def rows_first(bias: bool) -> Net:
    """A linear layer reads a transposed view, as in SegFormer."""
    return Net(
        lambda m, x: m.fc(F.relu(m.m(F.relu(m.l(m.a(x).flatten(2).transpose(1, 2))))).mean(1)),
        a=nn.Conv2d(3, 8, 3, 2), l=nn.Linear(8, 12, bias=bias), m=nn.Linear(12, 6), fc=nn.Linear(6, 10),
    )  # fmt: skip


def positions(rows: int, buffer: bool) -> Net:
    """A table of positions that is as long as the sequence, or longer, and cut."""
    net = Net(
        lambda m, x: m.o(m.t(m.i(x) + m.pe[:, : x.size(1)]).mean(1)),
        i=nn.Linear(16, 12), t=nn.TransformerEncoderLayer(12, 3, 24, batch_first=True), o=nn.Linear(12, 4),
    )  # fmt: skip
    table = torch.randn(1, rows, 12)
    if buffer:
        net.register_buffer("pe", table)
    else:
        net.pe = nn.Parameter(table)
    return net


def embedded(places: str) -> Net:
    """Words and positions; the residual stream is as wide as the embeddings."""

    def forward(m: Any, x: Tensor) -> Tensor:
        h = m.e(x)
        h = h + (m.p if places == "parameter" else m.p(torch.arange(12)) if places == "table" else 0)
        h = h + m.f2(F.gelu(m.f1(m.n(h))))
        return m.o(h.mean(1))

    made = {"parameter": nn.Parameter(torch.randn(1, 12, 8)), "table": nn.Embedding(12, 8), "none": None}
    return Net(
        forward, e=nn.Embedding(50, 8), p=made[places], f1=nn.Linear(8, 24), f2=nn.Linear(24, 8), n=nn.LayerNorm(8),
        o=nn.Linear(8, 4),
    )  # fmt: skip


def tied_words() -> Net:
    """The table of words is the last layer, too."""

    def forward(m: Any, x: Tensor) -> Tensor:
        h = m.e(x) + m.f2(F.gelu(m.f1(m.e(x))))
        return (h @ m.e.weight.T).mean(1)

    return Net(forward, e=nn.Embedding(50, 8), f1=nn.Linear(8, 24), f2=nn.Linear(24, 8))


def volumes() -> Net:
    """A 3D convolution, then 2D ones."""
    return Net(
        lambda m, x: m.fc(pool(m.b(F.relu(m.a(x[:, None])).flatten(1, 2)))),
        a=nn.Conv3d(1, 8, 3, padding=1), b=nn.Conv2d(24, 6, 3), fc=nn.Linear(6, 10),
    )  # fmt: skip


def recurrent(kind: type) -> Net:
    return Net(
        lambda m, x: m.fc(m.rnn(m.b(m.a(x)).flatten(2).transpose(1, 2))[0][:, -1]),
        a=block(3, 8), b=nn.Conv2d(8, 6, 3), rnn=kind(6, 5, batch_first=True), fc=nn.Linear(5, 10),
    )  # fmt: skip


def by_words(look_up: Callable[[Any, Tensor], Tensor], **table: Any) -> Net:
    """Words become rows of 8 numbers, which linear layers ``f`` and ``o`` read."""
    return Net(lambda m, x: m.o(F.relu(m.f(look_up(m, x)))), **table, f=nn.Linear(8, 12), o=nn.Linear(12, 4))


def shuffled_by_hand(x: Tensor) -> Tensor:
    """Four channels become one of twice the height and width."""
    n, _, h, w = x.shape
    return x.view(n, -1, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, -1, 2 * h, 2 * w)


def shuffled_beside() -> Net:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.a(x)
        beside = [shuffled_by_hand(m.up(x)), F.interpolate(x, scale_factor=2)]
        return m.fc(pool(m.c(torch.cat(beside, 1))))

    return Net(forward, a=nn.Conv2d(3, 8, 3), up=nn.Conv2d(8, 16, 1), c=nn.Conv2d(12, 6, 3), fc=nn.Linear(6, 10))


def by_position(function: Callable[[Tensor], Tensor]) -> Net:
    """An operator without a rule that works on the positions of every channel by themselves."""
    return over(lambda x: function(x))


OFFERED: dict[str, tuple[Callable[[], nn.Module], list[str], Tensor]] = {
    "norm over [C, H, W]": (lambda: chain(nn.LayerNorm([8, 8, 8])), ["a", "c"], EXAMPLE),
    "norm over [C, H, W] without parameters": (
        lambda: chain(nn.LayerNorm([8, 8, 8], elementwise_affine=False)), ["a", "c"], EXAMPLE
    ),
    "3D beside 2D": (volumes, ["a", "b"], EXAMPLE),
    "max over channels": (lambda: over(lambda x: x * x.max(1, keepdim=True)[0].sigmoid()), ["a", "c"], EXAMPLE),
    "min over channels": (lambda: over(lambda x: x - x.min(1, keepdim=True)[0]), ["a", "c"], EXAMPLE),
    "logsumexp over channels": (lambda: over(lambda x: x - x.logsumexp(1, True)), ["a", "c"], EXAMPLE),
    "max over positions": (lambda: pooled(lambda x: x.flatten(2).max(2)[0]), ["a.0", "b"], EXAMPLE),
    "median over positions": (lambda: pooled(lambda x: x.flatten(2).median(2)[0]), ["a.0", "b"], EXAMPLE),
    "largest of positions": (lambda: pooled(lambda x: x.flatten(2).topk(3)[0].mean(2)), ["a.0", "b"], EXAMPLE),
    "sorted positions": (lambda: pooled(lambda x: x.flatten(2).sort()[0][..., 5]), ["a.0", "b"], EXAMPLE),
    "k-th of positions": (lambda: pooled(lambda x: x.flatten(2).kthvalue(5)[0]), ["a.0", "b"], EXAMPLE),
    "logsumexp over positions": (lambda: pooled(lambda x: x.logsumexp((2, 3))), ["a.0", "b"], EXAMPLE),
    "product over positions": (lambda: pooled(lambda x: x.mean(3).prod(2)), ["a.0", "b"], EXAMPLE),
    "sums up to a position": (lambda: over(lambda x: x.cumsum(2) + x.cummax(3)[0]), ["a", "c"], EXAMPLE),
    "gated linear unit": (lambda: chain(nn.Conv2d(8, 16, 1), nn.GLU(1)), ["a", "middle.0", "c"], EXAMPLE),
    "log sigmoid": (lambda: chain(nn.LogSigmoid()), ["a", "c"], EXAMPLE),
    "random leaky": (lambda: chain(nn.RReLU()), ["a", "c"], EXAMPLE),
    "channel shuffle": (
        lambda: chain(nn.ChannelShuffle(2), nn.Conv2d(8, 8, 1, groups=2)), ["a", "middle.1", "c"], EXAMPLE
    ),
    "windows and back": (lambda: chain(nn.Unfold(3, padding=1), nn.Fold(8, 3, padding=1)), ["a", "c"], EXAMPLE),
    "sampled at places": (sampled, ["a", "c"], EXAMPLE),
    "unpooled": (unpooled, ["a", "c"], EXAMPLE),
    "circular padding": (
        lambda: chain(nn.Conv2d(8, 8, 3, 1, 1, padding_mode="circular")), ["a", "middle.0", "c"], EXAMPLE
    ),
    "written in parts": (lambda: over(written_in_parts), ["a", "c"], EXAMPLE),
    "norm over positions": (lambda: chain(nn.LayerNorm([8, 8])), ["a", "c"], EXAMPLE),
    "quantile over positions": (lambda: pooled(lambda x: x.flatten(2).quantile(0.5, 2)), ["a.0", "b"], EXAMPLE),
    "gathered positions": (
        lambda: pooled(lambda x: (y := x.flatten(2)).gather(2, y.argmax(2, True)).squeeze(2)), ["a.0", "b"], EXAMPLE
    ),
    "turned": (lambda: by_position(lambda x: x.rot90(1, (2, 3))), ["a", "c"], EXAMPLE),
    "a spectrum of positions": (lambda: by_position(lambda x: torch.fft.fft2(x).abs()), ["a", "c"], EXAMPLE),
    "a power of matrices of positions": (lambda: by_position(lambda x: torch.linalg.matrix_exp(x / 9)), ["a", "c"],
                                         EXAMPLE),
    "blurred": (
        lambda: over(lambda x: F.conv2d(x, torch.ones(1, 1, 3, 3).expand(x.shape[1], 1, 3, 3), groups=x.shape[1])),
        ["a", "c"], EXAMPLE,
    ),
    "blurred by what is repeated": (
        lambda: Net(lambda m, x: m.fc(pool(m.c(F.conv2d(x := m.a(x), m.k.repeat(x.shape[1], 1, 1, 1),
                                                        groups=x.shape[1])))),
                    a=nn.Conv2d(3, 8, 3), k=nn.Parameter(torch.rand(1, 1, 3, 3)), c=nn.Conv2d(8, 6, 3),
                    fc=nn.Linear(6, 10)), ["a", "c"], EXAMPLE,
    ),
    "pixel shuffle by hand beside": (shuffled_beside, ["a", "up", "c"], EXAMPLE),
    "words looked up in a parameter": (
        lambda: by_words(lambda m, x: m.w[x].mean(1), w=nn.Parameter(torch.randn(50, 8))), ["w", "f"], WORDS
    ),
    "words looked up by what is computed of them": (
        lambda: by_words(lambda m, x: m.w[(x * 3 + 1) % 50].mean(1), w=nn.Parameter(torch.randn(50, 8))), ["w", "f"],
        WORDS,
    ),
    "bags of words": (
        lambda: by_words(lambda m, x: m.e(x), e=nn.EmbeddingBag(50, 8)), ["e.weight", "f"], WORDS
    ),
    "largest of bags of words": (
        lambda: by_words(lambda m, x: m.e(x), e=nn.EmbeddingBag(50, 8, mode="max")), ["e.weight", "f"], WORDS
    ),
    "normalised": (lambda: pooled(lambda x: F.normalize(pool(x), dim=1)), ["a.0", "b"], EXAMPLE),
    "normalised by hand": (
        lambda: pooled(lambda x: (y := pool(x)) / y.norm(dim=1, keepdim=True)), ["a.0", "b"], EXAMPLE
    ),
    "rows first": (lambda: rows_first(True), ["a", "l", "m"], EXAMPLE),
    "rows first without bias": (lambda: rows_first(False), ["a", "l", "m"], EXAMPLE),
    "pixel shuffle beside": (upsampled_beside, ["a", "up", "c"], EXAMPLE),
    "depthwise transposed": (
        lambda: through(u=nn.ConvTranspose2d(8, 8, 4, 2, 1, groups=8), v=nn.Conv2d(8, 8, 1)), ["a", "v", "c"], EXAMPLE
    ),
    "convolution by function": (lambda: functional(torch.randn(8, 8, 3, 3)), ["a", "w", "c"], EXAMPLE),
    "with bias": (lambda: functional(torch.randn(8, 8, 3, 3), torch.randn(8)), ["a", "w", "c"], EXAMPLE),
    "grouped": (lambda: functional(torch.randn(8, 4, 3, 3), groups=2), ["a", "w", "c"], EXAMPLE),
    "positions": (lambda: positions(12, False), ["i", "t.self_attn.in_proj_weight", "t.linear1"], ROWS),
    "more positions": (lambda: positions(64, False), ["i", "t.self_attn.in_proj_weight", "t.linear1"], ROWS),
    "a buffer of more positions": (lambda: positions(64, True), ["i", "t.self_attn.in_proj_weight", "t.linear1"], ROWS),
    "words": (lambda: embedded("none"), ["e.weight", "f1"], WORDS),
    "words and a table of places": (lambda: embedded("table"), ["e.weight", "f1"], WORDS),
    "words and a parameter of places": (lambda: embedded("parameter"), ["e.weight", "f1"], WORDS),
}  # fmt: skip


@pytest.mark.parametrize("kind", OFFERED)
def test_it_is_offered_and_works(kind: str) -> None:
    make, sites, example = OFFERED[kind]
    torch.manual_seed(0)
    assert names(assert_true_to_masking(lively(make()), example, policies=2)) == sites


def refusals(model: nn.Module, example: Tensor) -> str:
    """What the user is told, of a network with nothing to prune, too."""
    try:
        return "; ".join(f"{name}: {reason}" for name, reason in reasons(build_graph(model, example)).items())
    except ModelError as error:
        return str(error)


REFUSED: dict[str, tuple[Callable[[], nn.Module], str, str, Tensor]] = {
    "sorted channels": (lambda: over(lambda x: x.sort(1)[0]), "a", "sort runs over its channels", EXAMPLE),
    "sums over channels": (lambda: over(lambda x: x.cumsum(1)), "a", "cumsum runs over its channels", EXAMPLE),
    "largest channels": (lambda: over(lambda x: x.topk(8, 1)[0]), "a", "topk runs over its channels", EXAMPLE),
    "grouped transposed": (
        lambda: through(u=nn.ConvTranspose2d(8, 8, 2, 2, groups=2)), "a",
        "u, which reads it, is a transposed convolution of 2 groups of channels", EXAMPLE,
    ),
    "LSTM": (lambda: recurrent(nn.LSTM), "b", "rnn, a recurrent layer (LSTM), reads it", EXAMPLE),
    "GRU": (lambda: recurrent(nn.GRU), "b", "rnn, a recurrent layer (GRU), reads it", EXAMPLE),
    "a table of words that is also a layer": (
        tied_words, "e.weight", "its channels are multiplied with one another", WORDS
    ),
    "a part of a parameter": (
        lambda: Net(lambda m, x: m.fc(pool(F.conv2d(m.a(x), m.w[:8]))), a=nn.Conv2d(3, 8, 3),
                    w=nn.Parameter(torch.randn(9, 8, 1, 1)), fc=nn.Linear(8, 10)),
        "a", "the weights of a convolution that reads it are made from a part of w", EXAMPLE,
    ),
    "experts that are mixed": (
        lambda: Net(lambda m, x: m.fc(pool(m.c(F.conv2d(y := m.a(x), (m.r(pool(y)) @ m.w).view(8, 8, 1, 1))))),
                    a=nn.Conv2d(3, 8, 3), r=nn.Linear(8, 3), w=nn.Parameter(torch.randn(3, 64)), c=nn.Conv2d(8, 6, 3),
                    fc=nn.Linear(6, 10)),
        "a", "the weights of a convolution that reads it are made while the network runs", EXAMPLE,
    ),
    "computed from a parameter": (
        lambda: Net(lambda m, x: m.fc(pool(F.conv2d(m.a(x), m.w * m.mask, padding=1))), a=nn.Conv2d(3, 8, 3),
                    w=nn.Parameter(torch.randn(8, 8, 3, 3)), mask=nn.Parameter(torch.ones(1, 1, 3, 3)),
                    fc=nn.Linear(8, 10)),
        "a", "the weights of a convolution that reads it are made while the network runs, from w", EXAMPLE,
    ),
    "a spectrum of channels": (
        lambda: over(lambda x: torch.fft.fft(x, dim=1).abs()), "a",
        "it runs through torch.fft, which is not understood", EXAMPLE,
    ),
    "distances": (
        lambda: pooled(lambda x: torch.cdist(pool(x), torch.ones(8, 8))), "b", "it runs through torch.cdist", EXAMPLE
    ),
    "sizes by value": (
        lambda: over(lambda x: x * x[x > 0].mean()), "a",
        "the sizes of tensors depend on values of its input (x[mask], masked_select, nonzero or unique)", EXAMPLE,
    ),
    "orthogonal weights": (
        lambda: through(b=nn.Conv2d(8, 8, 1), u=parametrizations.orthogonal(nn.Conv2d(8, 8, 1))), "b",
        "the network breaks without some of its channels", EXAMPLE,
    ),
    "a branch by value": (
        lambda: over(lambda x: x * 2 if x.mean() > 0 else x.neg().exp()), "a",
        "the network decides by values of its input (an if on a tensor, .item(), int(...) or float(...))", EXAMPLE,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_it_is_refused_by_its_reason(kind: str) -> None:
    make, layer, reason, example = REFUSED[kind]
    torch.manual_seed(0)
    model = lively(make())
    assert f"{layer}: {reason}" in refusals(model, example)


# Modules that cannot be copied


def masked(m: nn.Sequential) -> None:
    prune.ln_structured(m[0], "weight", 0.5, 2, 0)
    prune.l1_unstructured(m[2], "weight", 0.3)
    prune.l1_unstructured(m[2], "bias", 0.3)


def kept(m: nn.Sequential) -> None:
    m[0].register_forward_hook(lambda module, inputs, output: setattr(module, "last", [output]))
    m(torch.zeros(1, m[0].in_channels, 8, 8))


@pytest.mark.parametrize(
    "change",
    [
        masked,
        kept,
        lambda m: nn.utils.spectral_norm(m[0]),
        lambda m: parametrizations.spectral_norm(m[0]),
        lambda m: parametrizations.weight_norm(m[0]),
        pytest.param(lambda m: nn.utils.weight_norm(m[0]), marks=pytest.mark.filterwarnings("ignore::FutureWarning")),
    ],
)
def test_weights_that_are_computed_and_what_is_kept_do_no_harm(change: Callable[[nn.Sequential], None]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
    )
    change(model)
    model.eval()
    with torch.no_grad():
        before = model(EXAMPLE)
    graph = assert_true_to_masking(prepared(model), EXAMPLE, policies=2)
    assert names(graph) == ["0", "2"]
    with torch.no_grad():
        torch.testing.assert_close(model(EXAMPLE), before)


@pytest.mark.parametrize("change", [kept, masked, lambda m: nn.utils.spectral_norm(m[0])])
def test_copies_leave_graphs_behind(change: Callable[[nn.Sequential], None]) -> None:
    """After a training step, too, there are copies; the network itself stays as it is."""
    model = chain()
    change(model.middle.append(nn.Conv2d(8, 8, 3)).append(nn.ReLU()).append(nn.Conv2d(8, 8, 1)))
    before = output(model.eval(), EXAMPLE)
    model(EXAMPLE).sum().backward()
    assert_same(output(copied(model), EXAMPLE), before)
    assert_same(output(model, EXAMPLE), before)


def test_averaged_weights_are_the_network() -> None:
    inner = chain()
    assert prepared(torch.optim.swa_utils.AveragedModel(inner)).a.weight.equal(inner.a.weight)


class Locked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lock = nn.Conv2d(3, 8, 3), threading.Lock()


def test_a_lock_is_named() -> None:
    with pytest.raises(ModelError, match=r"cannot be copied: 'inner.lock' is a lock, which cannot be copied"):
        prepared(Net(lambda m, x: x, inner=Locked()))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_torchscript_inside_is_named() -> None:
    with pytest.raises(ModelError, match="'d' is a TorchScript module"):
        prepared(Net(lambda m, x: x, d=torch.jit.script(nn.Conv2d(3, 8, 3))))


def test_a_padding_mask_is_followed() -> None:
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(12, 4, 24, batch_first=True), 2)

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.i, self.t, self.o = nn.Linear(16, 12), encoder, nn.Linear(12, 4)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.o(self.t(self.i(x), src_key_padding_mask=mask)[:, 0])

    torch.manual_seed(0)
    graph = build_graph(Masked().eval(), {"x": ROWS, "mask": torch.arange(12)[None] > 8})
    assert names(graph) == [
        "i", "t.layers.0.self_attn.in_proj_weight", "t.layers.0.linear1", "t.layers.1.self_attn.in_proj_weight",
        "t.layers.1.linear1",
    ]  # fmt: skip


# Files of operators


class Takes(nn.Module):
    """Takes whatever it is given, by place or by name."""

    def forward(self, x: Tensor, *more: Tensor, **named: Tensor) -> Tensor:
        return x + sum(more) + sum(named.values())


@pytest.mark.parametrize("example", [ROWS, (ROWS, ROWS, ROWS), {"x": ROWS, "mask": ROWS}])
def test_any_arguments_are_exported(example: Any) -> None:
    model = Takes()
    program = read_program(write_program(model, example), model.state_dict())
    twice = nested.mapped(lambda leaf: leaf.repeat(3, 1, 1), example)
    assert_same(nested.call(program, twice), nested.call(model, twice))


def test_masks_that_are_combined_are_exported() -> None:
    model = over(lambda x: x * ((x > -1) & (x < 1) | (x > 2))).eval()
    program = read_program(write_program(model, EXAMPLE), model.state_dict())
    assert_same(output(program, EXAMPLE), output(model, EXAMPLE))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x @ x.mT,
        lambda x: x @ x.adjoint() + x.mH,
        lambda x: x[0, 0] @ x[0, 1].T + x[0, 2].H,
        lambda x: torch.linalg.multi_dot([x[0, 0], x[0, 1], x[0, 2]]),
        lambda x: torch.outer(x[0, 0, 0], x[0, 1, 0]).addr(x[0, 2, 0], x[0, 3, 0]),
        lambda x: torch.arctan2(x, x + 2) + torch.special.xlogy(x.abs(), x.abs() + 1) + torch.special.ndtr(x),
        lambda x: x.nanmedian(2)[0] * x[0].msort().sum(),
    ],
)
def test_forward_operators_have_a_place_in_a_program(function: Callable[[Tensor], Tensor]) -> None:
    model = Net(lambda m, x: function(m.a(x)), a=nn.Conv2d(3, 8, 3, 1, 1)).eval()
    program = read_program(write_program(model, EXAMPLE), model.state_dict())
    assert_same(output(program, EXAMPLE), output(model, EXAMPLE))


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell, lambda *s: nn.RNNCell(*s, nonlinearity="relu")])
def test_recurrent_cells_have_a_place_in_a_program(cell: Callable[..., nn.Module]) -> None:
    def forward(m: Any, x: Tensor) -> Any:
        state = None
        for step in x.unbind(1)[:3]:
            state = m.cell(step, state)
        return state[0] if isinstance(state, tuple) else state

    model = Net(forward, cell=cell(16, 5)).eval()
    program = read_program(write_program(model, ROWS), model.state_dict())
    assert_same(output(program, ROWS), output(model, ROWS))


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: x.view(len(x), 8, -1, 8), FIXED_BATCH),
        (lambda x: x * 2 if x.mean() > 0 else x, DECIDES),
        (lambda x: x * torch.linalg.matrix_exp(x[..., :8]), "ONNX has no operator for linalg_matrix_exp"),
        (
            lambda x: (
                F.conv2d(x.flatten(0, 1)[None], x[..., :3, :3], groups=x.shape[0]).mT[0, :, None] + x[..., :6, :6]
            ),
            "conv2d has an argument that depends on the batch size, which ONNX cannot have",
        ),
    ],
)
def test_why_there_is_no_file_is_told_in_one_line(
    function: Callable[[Tensor], Tensor], reason: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ExportError) as raised:
        export_onnx(over(function).eval(), EXAMPLE, tmp_path / "model.onnx")
    assert reason in str(raised.value)
    assert "\n" not in str(raised.value)
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []
