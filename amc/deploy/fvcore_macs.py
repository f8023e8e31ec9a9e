"""MACs counted by fvcore (https://github.com/facebookresearch/fvcore), independently of `amc.graph.macs`.

fvcore counts convolutions, linear layers, matrix products and einsum in a TorchScript trace; a fused multiply-add
counts as one. It has no rule for some operators that multiply (fused attention, recurrent layers, distances). These are
reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from amc.deploy.onnx_macs import einsum_macs
from amc.errors import first_line
from amc.graph.attention import without_fast_path
from amc.runtime.silence import silenced
from amc.task import nested
from amc.task.nested import Nested

_COUNTED = frozenset(("conv", "linear", "addmm", "mm", "matmul", "bmm", "einsum"))
"""fvcore's names of operators whose count is MACs; unlike those of normalisation and interpolation."""
_COMMON = frozenset(("convolution", "addmm", "mm", "bmm"))
"""ATen operators that both amc and fvcore count."""
_RECURRENT = frozenset(("lstm", "gru", "rnn_tanh", "rnn_relu"))
"""Operators that ATen may decompose into matrix products."""
_MULTIPLYING = frozenset(
    [
        "baddbmm",
        "addbmm",
        "addmv",
        "mv",
        "dot",
        "vdot",
        "inner",
        "tensordot",
        "chain_matmul",
        "bilinear",
        "_trilinear",
        "cdist",
        "pdist",
        "_euclidean_dist",
        "lstm",
        "gru",
        "rnn_tanh",
        "rnn_relu",
        "lstm_cell",
        "gru_cell",
        "rnn_tanh_cell",
        "rnn_relu_cell",
        "scaled_dot_product_attention",
        "deform_conv2d",
        "_native_multi_head_attention",
        "_transformer_encoder_layer_fwd",
        "matrix_power",
        "stft",
        "istft",
    ]
)
_MULTIPLYING_FAMILIES = ("fft_", "linalg_")
_SOFTER = ("linalg_vector_norm", "linalg_norm", "linalg_cross", "fft_fftshift", "fft_ifftshift")


@dataclass(frozen=True)
class FvcoreCount:
    """fvcore's count for one inference at batch 1."""

    macs: int | None
    """None if fvcore cannot trace the network."""
    uncounted: tuple[str, ...] = ()
    """Operators that multiply but have no rule in fvcore; ``macs`` does not include them."""
    failure: str | None = None
    """The reason why fvcore cannot trace the network."""

    def disagreement(self, by_operator: Mapping[str, int]) -> str | None:
        """Explain the difference to amc's count, given as MACs by operator; None if both are equal.

        >>> FvcoreCount(100).disagreement({"convolution": 100})
        >>> FvcoreCount(100, ("cdist",)).disagreement({"convolution": 100, "_cdist_forward": 50})
        'fvcore counts 100 MACs, amc 150: fvcore has no rule for cdist'
        >>> FvcoreCount(100, ("cdist",)).disagreement({"convolution": 90, "_cdist_forward": 50})
        'fvcore counts 100 MACs, amc 140, for no known reason'
        """
        macs = sum(by_operator.values())
        if self.macs is None:
            return f"fvcore cannot trace the network: {self.failure}"
        if self.macs == macs:
            return None
        others = sum(count for name, count in by_operator.items() if name not in _COMMON)
        is_known = self.uncounted and (self.macs + others == macs or _RECURRENT & set(self.uncounted))
        why = f": fvcore has no rule for {', '.join(self.uncounted)}" if is_known else ", for no known reason"
        return f"fvcore counts {self.macs:,} MACs, amc {macs:,}{why}"


def count_with_fvcore(model: nn.Module, example: Nested) -> FvcoreCount:
    """MACs of ``model`` (on the CPU, evaluation mode) on one sample ``[1, ...]``."""
    leaves = tuple(leaf.cpu() for leaf in nested.leaves(example))
    try:
        with silenced("fvcore"), torch.no_grad(), without_fast_path():
            from fvcore.nn import FlopCountAnalysis

            analysis = FlopCountAnalysis(_Flat(model, example).eval(), leaves)
            analysis.set_op_handle("aten::_convolution_mode", _convolution)
            analysis.set_op_handle("aten::matmul", _matmul)
            analysis.set_op_handle("aten::einsum", _einsum)
            analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
            found, unknown = analysis.by_operator(), analysis.unsupported_ops()
    except Exception as error:  # noqa: BLE001  (TorchScript and fvcore's rules raise many types)
        return FvcoreCount(None, failure=first_line(error))
    names = {name.rpartition("::")[2].rstrip("_") for name in unknown}
    return FvcoreCount(
        int(sum(count for name, count in found.items() if name in _COUNTED)), tuple(sorted(filter(_multiplies, names)))
    )


def _convolution(inputs: list[Any], outputs: list[Any]) -> dict[str, int]:
    """Rule for a convolution whose padding is a string, such as ``padding="same"``."""
    from fvcore.nn.jit_handles import conv_flop_count, get_shape

    x, weight, y = (get_shape(value) for value in (*inputs[:2], outputs[0]))
    return {"conv": int(conv_flop_count(x, weight, y))}


def _matmul(inputs: list[Any], outputs: list[Any]) -> dict[str, int]:
    """Rule for matrix products, since fvcore's own fails for vectors and broadcast batches."""
    from fvcore.nn.jit_handles import get_shape

    return {"matmul": prod(get_shape(outputs[0])) * get_shape(inputs[0])[-1]}


def _einsum(inputs: list[Any], outputs: list[Any]) -> dict[str, int]:
    """Rule for einsum, since fvcore reads its count from a text that numpy rounds to four digits.

    Exact for two operands, where every combination of the labels' values is one multiplication. fvcore counts others.
    """
    from fvcore.nn.jit_handles import einsum_flop_jit, get_shape

    shapes = [get_shape(v) for v in inputs[1].node().inputs()]
    if len(shapes) > 2:
        return {"einsum": int(einsum_flop_jit(inputs, outputs))}
    return {"einsum": einsum_macs(inputs[0].toIValue(), shapes) if len(shapes) == 2 else 0}


def _multiplies(name: str) -> bool:
    return name in _MULTIPLYING or (name.startswith(_MULTIPLYING_FAMILIES) and name not in _SOFTER)


class _Flat(nn.Module):
    """Wraps a network so that inputs and outputs are tuples of tensors."""

    def __init__(self, model: nn.Module, example: Nested) -> None:
        super().__init__()
        self.model, self._example = model, example

    def forward(self, *leaves: Tensor) -> tuple[Tensor, ...]:
        rest = iter(leaves)
        given = nested.mapped(lambda _: next(rest), self._example)
        return tuple(t for t in tree_leaves(nested.call(self.model, given)) if isinstance(t, Tensor))
