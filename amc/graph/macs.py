"""Multiply-accumulates (MACs) of single ATen operators.

An operator either has a formula, is known to multiply nothing with weights or other activations (it moves, combines
element by element, reduces, normalises, pools or interpolates), or its cost is unknown. What is unknown is never free:
`operator_macs` gives None, and the trace of a network lists it (`amc.graph.trace.Trace.uncounted`).

Notation: N samples, T steps, D inputs, H hidden units; a matrix product ``[n, k] @ [k, m]`` takes n·k·m MACs.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

_Formula = Callable[..., int]
"""``formula(*args, out=…, **kwargs)``: the operator's own arguments, and what it gave."""


def operator_macs(func: Any, args: Any, kwargs: Any, out: Any) -> int | None:
    """MACs of one operator as it ran; None where nothing is known of it.

    >>> a, b = torch.ones(2, 3), torch.ones(3, 5)
    >>> operator_macs(torch.ops.aten.mm.default, (a, b), {}, a @ b)
    30
    >>> operator_macs(torch.ops.aten.relu.default, (a,), {}, a)
    0
    >>> print(operator_macs(torch.ops.aten._fft_r2c.default, (a, [1], 0, True), {}, a.to(torch.complex64)))
    None
    """
    formula = _FORMULAS.get(operator_name(func))
    if formula is not None:
        return int(formula(*args, out=out, **kwargs))
    functional = getattr(torch.ops.aten, operator_name(func), None)  # addmm for addmm_
    counter = flop_registry.get(func.overloadpacket) or flop_registry.get(functional)
    if counter is not None:
        return int(counter(*args, **kwargs, out_val=out)) // 2
    return 0 if _multiplies_nothing(func, out) else None


def operator_name(func: Any) -> str:
    """An operator's name without ``aten``, overload and the underscore of operators that work in place.

    >>> operator_name(torch.ops.aten.add_.Tensor)
    'add'
    """
    space, _, name = str(func.overloadpacket).partition(".")
    plain = name.rstrip("_") if not name.startswith("__") else name
    return plain if space == "aten" else f"{space}.{plain}"


def _multiplies_nothing(func: Any, out: Any) -> bool:
    name = operator_name(func)
    if name in _FREE or func.is_view or torch.Tag.pointwise in func.tags:
        return True
    functional = getattr(torch.ops.aten, name, None)  # in-place variants are not tagged
    overloads = [getattr(functional, o) for o in functional.overloads()] if functional is not None else []
    if any(torch.Tag.pointwise in o.tags for o in overloads):
        return True
    return not any(t.is_floating_point() or t.is_complex() for t in tree_leaves(out) if isinstance(t, Tensor))


# Formulas


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, out: Any, **__: Any) -> int:
    """``[N, heads, L, D]`` each: L·S·(D + Dᵥ) for every head."""
    return int(prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1]))


def _product_added(_: Tensor, first: Tensor, second: Tensor, *__: Any, out: Any, **___: Any) -> int:
    """``added + first @ second``, also summed over a batch of products, and with a vector as ``second``."""
    return int(first.numel() * (second.shape[-1] if second.ndim > 1 else 1))


def _times_vector(first: Tensor, *_: Any, out: Any) -> int:
    return first.numel()


def _matmul(first: Tensor, second: Tensor, *, out: Tensor) -> int:
    return out.numel() * first.shape[-1]


def _linear(x: Tensor, weight: Tensor, *_: Any, out: Any) -> int:
    return prod(x.shape[:-1]) * weight.numel()


def _recurrent_layer(x: Tensor, from_input: Tensor, from_hidden: Tensor, *_: Any, out: Any, **__: Any) -> int:
    """One direction of one layer, ``x [T, N, D]``: at every step both weight matrices are applied."""
    return prod(x.shape[:-1]) * (from_input.numel() + from_hidden.numel())


def _recurrent(x: Tensor, second: Any, third: Any, *_: Any, out: Any, **__: Any) -> int:
    """All layers and directions: every matrix of weights is applied at every step; packed sequences have theirs."""
    weights = second if isinstance(second, list | tuple) and second[0].ndim > 1 else third
    if not isinstance(weights, list | tuple):
        weights = [weights]
    return int(prod(x.shape[:-1]) * sum(w.numel() for w in weights if w.ndim > 1))


def _cudnn_recurrent(x: Tensor, weights: Any, *_: Any, out: Any, **__: Any) -> int:
    return int(prod(x.shape[:-1]) * sum(w.numel() for w in weights if w.ndim > 1))


def _trilinear(
    first: Tensor, second: Tensor, third: Tensor, expand1: Any, expand2: Any, expand3: Any, summed: Any, *_: Any,
    out: Any, **__: Any,
) -> int:  # fmt: skip
    """Σ first · second · third over the dimensions ``summed`` of their common shape: two contractions in turn."""
    shapes = []
    for tensor, expanded in ((first, expand1), (second, expand2), (third, expand3)):
        shape = list(tensor.shape)
        for dim in sorted(expanded):
            shape.insert(dim, 1)
        shapes.append(shape)
    pair = [max(sizes) for sizes in zip(*shapes[:2], strict=True)]
    left = [1 if dim in summed and shapes[2][dim] == 1 else size for dim, size in enumerate(pair)]
    return int(prod(pair) + prod(max(sizes) for sizes in zip(left, shapes[2], strict=True)))


def _distances(first: Tensor, *_: Any, out: Tensor, **__: Any) -> int:
    """Between all pairs of rows: a difference and its power for every feature."""
    return out.numel() * first.shape[-1]


def _deformable(x: Tensor, weight: Tensor, *_: Any, out: Tensor, **__: Any) -> int:
    """As a convolution of that size: sampling at shifted places is interpolation."""
    return out.numel() * prod(weight.shape[1:])


def _whole_attention(
    query: Tensor, key: Tensor, value: Tensor, width: int, heads: int, qkv: Tensor, bias: Any, proj: Tensor, *_: Any,
    out: Any, **__: Any,
) -> int:  # fmt: skip
    """`nn.MultiheadAttention` as one operator, ``[N, L, E]``."""
    own = query.shape[0] * query.shape[1] * (qkv.numel() // 3 + proj.numel())
    others = 2 * key.shape[0] * key.shape[1] * (qkv.numel() // 3)
    return own + others + query.shape[0] * query.shape[1] * key.shape[1] * 2 * width


def _encoder_layer(x: Tensor, width: int, heads: int, qkv: Tensor, bias: Any, proj: Tensor, *rest: Any, out: Any,
                   **__: Any) -> int:  # fmt: skip
    """`nn.TransformerEncoderLayer` as one operator, ``[N, L, E]``; of a nested tensor the padded length counts."""
    attention = _whole_attention(x, x, x, width, heads, qkv, bias, proj, out=out)
    feed_forward = sum(t.numel() for t in rest if isinstance(t, Tensor) and t.ndim == 2 and width in t.shape)
    return attention + x.shape[0] * x.shape[1] * feed_forward


_FORMULAS: dict[str, _Formula] = {
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_scaled_dot_product_attention_math": _attention,
    "_scaled_dot_product_fused_attention_overrideable": _attention,
    "scaled_dot_product_attention": _attention,
    "_addmm_activation": _product_added,
    "addbmm": _product_added,
    "addmv": _product_added,
    "mv": _times_vector,
    "dot": _times_vector,
    "vdot": _times_vector,
    "matmul": _matmul,
    "linear": _linear,
    "mkldnn_rnn_layer": _recurrent_layer,
    "lstm": _recurrent,
    "gru": _recurrent,
    "rnn_tanh": _recurrent,
    "rnn_relu": _recurrent,
    "_cudnn_rnn": _cudnn_recurrent,
    "miopen_rnn": _cudnn_recurrent,
    "_trilinear": _trilinear,
    "_cdist_forward": _distances,
    "_euclidean_dist": _distances,
    "_pdist_forward": _distances,
    "torchvision.deform_conv2d": _deformable,
    "_native_multi_head_attention": _whole_attention,
    "_transformer_encoder_layer_fwd": _encoder_layer,
}

_FREE = frozenset(
    name
    for names in (
        # make and move
        "arange empty empty_like empty_permuted empty_strided eye full full_like linspace logspace new_empty "
        "new_empty_strided new_full new_ones new_zeros bartlett_window blackman_window hamming_window kaiser_window "
        "range ones ones_like rand rand_like randint randint_like randn "
        "randn_like randperm scalar_tensor tril_indices triu_indices zeros zeros_like hann_window fill zero set resize "
        "normal uniform exponential bernoulli multinomial poisson geometric cauchy log_normal "
        "alias_copy as_strided as_strided_copy as_strided_scatter block_diag cat channel_shuffle clone col2im "
        "complex constant_pad_nd copy contiguous detach diag diag_embed diagonal_copy diagonal_scatter embedding "
        "expand_copy flip gather im2col index index_add index_copy index_fill index_put index_reduce index_select "
        "_unsafe_index _unsafe_index_put _unsafe_masked_index _unsafe_masked_index_put_accumulate "
        "jagged_to_padded_dense_forward lift lift_fresh lift_fresh_copy masked_fill masked_scatter masked_select "
        "max_unpool2d max_unpool3d meshgrid narrow_copy native_channel_shuffle one_hot _pack_padded_sequence "
        "pad_sequence permute_copy _nested_tensor_from_mask _nested_tensor_from_tensor_list _nested_from_padded "
        "nested_to_padded_tensor to_padded_tensor _nested_tensor_from_mask_left_aligned "
        "pixel_shuffle pixel_unshuffle reflection_pad1d reflection_pad2d reflection_pad3d repeat "
        "repeat_interleave replication_pad1d replication_pad2d replication_pad3d _reshape_copy reshape roll rot90 "
        "scatter scatter_add scatter_reduce select_scatter slice slice_scatter split split_with_sizes "
        "split_with_sizes_copy stack squeeze squeeze_copy t_copy take _to_copy to_dense transpose transpose_copy tril "
        "put resize_as _stack _chunk_cat _index_put_impl _lazy_clone t "
        "triu unbind_copy unfold_copy unique_consecutive unique_dim _unique _unique2 unsafe_chunk unsafe_split "
        "unsafe_split_with_sizes unsqueeze unsqueeze_copy _unsafe_view view_copy affine_grid_generator "
        # element by element
        "_add_relu addcdiv addcmul addr alpha_dropout batch_norm_elemt clip dropout feature_dropout _fused_dropout glu "
        "linalg_cross log_sigmoid_forward _masked_scale native_dropout polar prelu _prelu_kernel rrelu "
        "hardswish floor_divide huber_loss mse_loss smooth_l1_loss soft_margin_loss binary_cross_entropy "
        "binary_cross_entropy_with_logits _transform_bias_rescale_qkv "
        "rrelu_with_noise rrelu_with_noise_functional softplus _thnn_fused_gru_cell _thnn_fused_lstm_cell where "
        # reduce and sort
        "all amax amin aminmax any argmax argmin argsort bincount count_nonzero cummax cummin cumprod cumsum histc "
        "kthvalue linalg_vector_norm logcumsumexp logsumexp max mean median min mode msort nanmedian nansum "
        "dist native_norm nll_loss_forward nll_loss2d_forward _aminmax _logcumsumexp "
        "norm pairwise_distance prod renorm segment_reduce sort std std_mean sum topk trace var var_mean "
        "_local_scalar_dense item "
        # normalise
        "_fused_rms_norm rms_norm _native_batch_norm_legit _native_batch_norm_legit_functional "
        "_native_batch_norm_legit_no_training _batch_norm_no_update _batch_norm_with_update "
        "_batch_norm_with_update_functional batch_norm cudnn_batch_norm miopen_batch_norm native_batch_norm "
        "native_group_norm native_layer_norm _weight_norm_interface _softmax _log_softmax _safe_softmax softmax "
        "_masked_softmax "
        # pool and interpolate
        "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d avg_pool2d avg_pool3d "
        "_embedding_bag _embedding_bag_forward_only fractional_max_pool2d fractional_max_pool3d grid_sampler_2d "
        "grid_sampler_3d _grid_sampler_2d_cpu_fallback max_pool2d max_pool2d_with_indices max_pool3d_with_indices "
        "torchvision.roi_align torchvision.roi_pool torchvision.ps_roi_align torchvision.ps_roi_pool torchvision.nms "
        "_upsample_bicubic2d_aa _upsample_bilinear2d_aa _upsample_lanczos2d_aa _upsample_nearest_exact1d "
        "_upsample_nearest_exact2d _upsample_nearest_exact3d upsample_bicubic2d upsample_bilinear2d upsample_linear1d "
        "upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_trilinear3d "
        # say something about a tensor
        "_assert_async _assert_scalar _assert_tensor_metadata _functional_assert_async is_same_size",
    )
    for name in names.split()
)
