"""The allowlist for programs: the operators, types and values that a forward pass needs, and no others.

A program comes from a file that may be untrusted. ATen operators are called with arguments from the file, and not all
of them check their arguments: backward operators, ``segment_reduce``, ``set_`` and ``resize_`` read and write arbitrary
memory. So only listed operators are called, those whose kernels check shapes and indices.

`Scalar` does arithmetic on sizes: on numbers only, and with limits on the results.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import SymBool, SymFloat, SymInt, Tensor, fx

from amc.deploy.recurrent import GUARDED, traced
from amc.errors import BundleError

_POINTWISE_WORDS = """
    abs acos acosh add addcdiv addcmul asin asinh atan atan2 atanh bitwise_and bitwise_not bitwise_or
    bitwise_xor ceil celu clamp clamp_max clamp_min clip copysign cos cosh deg2rad div divide dropout elu eq erf
    erfc erfinv exp exp2 expm1 feature_dropout alpha_dropout feature_alpha_dropout fill floor floor_divide fmod
    frac ge gelu greater greater_equal gt hardsigmoid hardswish hardtanh heaviside hypot le leaky_relu lerp less
    less_equal log log10 log1p log2 logical_and logical_not logical_or logical_xor logit lt masked_fill mish mul
    multiply nan_to_num ne neg negative not_equal pow rad2deg reciprocal relu relu6 remainder round rrelu rsqrt
    selu sgn sigmoid sign silu sin sinc sinh sqrt square sub subtract tan tanh threshold true_divide trunc xlogy
    zero index_put scatter scatter_add index_add index_copy index_fill squeeze unsqueeze transpose t copy
    float_power swapaxes tril triu cumsum cumprod
"""
POINTWISE = frozenset(_POINTWISE_WORDS.split())
"""Operators with an in-place variant, such as ``relu_``."""

_OTHERS_WORDS = """
    absolute adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
    adaptive_max_pool3d addbmm addmm addmv affine_grid_generator alias all amax amin aminmax angle any arange
    argmax argmin argsort as_strided atleast_1d atleast_2d atleast_3d avg_pool1d avg_pool2d avg_pool3d baddbmm
    batch_norm bilinear block_diag bmm broadcast_tensors broadcast_to bucketize cartesian_prod cat cdist
    channel_shuffle chunk clone col2im column_stack complex concat concatenate conj conj_physical
    constant_pad_nd contiguous conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d
    convolution cosine_similarity cross cummax cummin detach diag diag_embed diagonal diagonal_scatter diff dist
    dot dsplit dstack einsum embedding expand expand_as eye fft_fft fft_fft2 fft_fftfreq fft_fftn fft_fftshift
    fft_ifft fft_ifft2 fft_ifftn fft_ifftshift fft_irfft fft_irfft2 fft_irfftn fft_rfft fft_rfft2 fft_rfftfreq
    fft_rfftn flatten flip fliplr flipud fmax fmin full full_like gather glu grid_sampler grid_sampler_2d
    grid_sampler_3d group_norm gru hann_window hardshrink hsplit hstack huber_loss im2col imag index
    index_reduce index_select inner instance_norm isclose isfinite isinf isnan item kron kthvalue l1_loss
    layer_norm lgamma lift_fresh lift_fresh_copy linalg_cross linalg_matrix_norm linalg_norm linalg_vecdot
    linalg_vector_norm linear linspace log_sigmoid log_softmax logaddexp logaddexp2 logcumsumexp logsumexp lstm
    masked_scatter matmul max max_pool1d max_pool1d_with_indices max_pool2d max_pool2d_with_indices max_pool3d
    max_pool3d_with_indices max_unpool2d max_unpool3d maximum mean median meshgrid min minimum mm movedim
    moveaxis mse_loss mv nanmean nansum narrow native_group_norm native_layer_norm new_full new_ones new_zeros
    norm numel numpy_T one_hot ones ones_like outer pad pairwise_distance permute pixel_shuffle pixel_unshuffle
    polar positive prelu prod quantile rand rand_like randn randn_like ravel real reflection_pad1d
    reflection_pad2d reflection_pad3d repeat repeat_interleave replication_pad1d replication_pad2d
    replication_pad3d reshape reshape_as resolve_conj resolve_neg rms_norm rnn_relu rnn_tanh roll rot90 rsub
    scalar_tensor scaled_dot_product_attention scatter_reduce searchsorted select select_scatter signbit slice
    slice_scatter smooth_l1_loss softmax softplus softshrink sort special_entr special_erf special_expit
    special_expm1 special_log1p special_log_softmax special_logsumexp special_softmax split split_with_sizes
    stack std std_mean stft sum swapdims sym_numel sym_size tile take_along_dim tensor_split tensordot to topk
    trace tril_indices triu_indices type_as unbind unflatten unfold unsafe_chunk unsafe_split
    unsafe_split_with_sizes upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d
    upsample_nearest2d upsample_nearest3d upsample_trilinear3d var var_mean vdot view view_as view_as_complex
    view_as_real vsplit vstack where zeros zeros_like _unsafe_view _to_copy _softmax _log_softmax
    _adaptive_avg_pool2d _adaptive_avg_pool3d _native_batch_norm_legit_no_training _weight_norm_interface
    _weight_norm _convolution _upsample_bilinear2d_aa _upsample_bicubic2d_aa _upsample_nearest_exact1d
    _upsample_nearest_exact2d _upsample_nearest_exact3d _shape_as_tensor __and__ __or__ __xor__
    addr adjoint arccos arccosh arcsin arcsinh arctan arctan2 arctanh chain_matmul diagflat digamma fix ger gru_cell
    i0 isneginf isposinf isreal linalg_diagonal linalg_matmul linalg_multi_dot lstm_cell mH mT matrix_H msort nanmedian
    nanquantile native_channel_shuffle rnn_relu_cell rnn_tanh_cell special_digamma special_erfc special_erfinv
    special_exp2 special_i0 special_log_ndtr special_logit special_ndtr special_round special_sinc special_xlog1py
    special_xlogy sum_to_size
"""
OTHERS = frozenset(_OTHERS_WORDS.split())

_OVERLOADS = frozenset(
    ("view.dtype", "to.other", "to.prim_Device", "to.prim_dtype", "to.prim_other", "lstm.data", "gru.data",
     "rnn_tanh.data", "rnn_relu.data")
)  # fmt: skip
"""Forbidden overloads of allowed operators.

``view.dtype`` and ``to.other`` reinterpret memory as another type. ``to.prim_*`` are TorchScript's:
without a dtype they read one from uninitialised memory, and the copy then goes out of bounds. The recurrent layers'
``data`` take packed sequences, which no exported network has, and do not check their weights.
"""

WORDS = frozenset(
    ("mode", "approximate", "rounding_mode", "indexing", "padding", "reduction", "reduce", "equation", "pad_mode",
     "norm")
)  # fmt: skip
"""Names of arguments that may be strings; none of them is the name of a file."""

DTYPES = {
    name: getattr(torch, name)
    for name in ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64",
                 "complex64", "complex128")
}  # fmt: skip
LAYOUTS = {"strided": torch.strided}
MEMORY_FORMATS = {
    name: getattr(torch, name) for name in ("contiguous_format", "preserve_format", "channels_last", "channels_last_3d")
}

LARGEST_INT = 2**63 - 1
LARGEST_SIZE = 2**31 - 1
"""Largest integer argument, except for the ends of slices."""
LARGEST_WINDOW = 2**16
"""Largest size of kernels, strides, paddings and dilations."""
LARGEST_MADE = 2**28
"""Most elements of a tensor that an operator creates from sizes."""
LONGEST = 2**16
"""Most elements of a list argument, and characters of a string."""

_TAGGED = ("ScalarType", "Layout", "MemoryFormat", "Device", "Generator", "Storage", "QScheme", "Stream")
"""Types of arguments that a program writes by name, such as ``{"dtype": "float32"}``: torch accepts any number."""

_WINDOWS = frozenset(
    ("kernel_size", "stride", "padding", "dilation", "output_padding", "pad", "groups", "num_layers", "repeats", "dims")
)
_MAKERS = frozenset(
    ("full", "zeros", "ones", "arange", "eye", "linspace", "rand", "randn", "new_full", "new_ones", "new_zeros",
     "repeat", "tile", "one_hot", "tril_indices", "triu_indices", "hann_window", "fft_fftfreq", "fft_rfftfreq",
     "repeat_interleave", "constant_pad_nd", "pad", "as_strided", "expand", "broadcast_to")
)  # fmt: skip


@dataclass(frozen=True)
class Scalar:
    """An arithmetic function for sizes. It refuses arguments that are not numbers, and results over 64 bits.

    >>> Scalar("add", operator.add)(2, 3)
    5
    """

    name: str
    function: Callable[..., Any]

    def __post_init__(self) -> None:  # fx generates Python code that uses these names
        for attribute in ("__name__", "__qualname__"):
            object.__setattr__(self, attribute, f"scalar_{self.name}")

    def __call__(self, *values: Any) -> Any:
        if any(isinstance(value, fx.Proxy) for value in values):
            return traced(self, values)
        if not all(isinstance(value, int | float | SymInt | SymFloat | SymBool) for value in values):
            raise TypeError(f"{self.name} takes numbers only")
        if self.name == "pow" and all(type(value) is int for value in values):
            base, exponent = values
            if abs(exponent) * max(1, base.bit_length()) > 128:
                raise OverflowError(f"{base} to the power of {exponent} is too large")
        result = self.function(*values)
        if type(result) is int and abs(result) > LARGEST_INT:
            raise OverflowError(f"{self.name} gives more than 64 bits")
        return result


def item_of(values: Any, index: Any) -> Any:
    """One of several results of an operator.

    >>> item_of((1, 2), 1)
    2
    """
    if isinstance(values, fx.Proxy):
        return traced(item_of, (values, index))
    if not isinstance(values, tuple | list) or type(index) is not int:
        raise TypeError("getitem takes a list of results and an integer")
    return values[index]


_ARITHMETIC: dict[str, Callable[..., Any]] = {
    **{
        name: getattr(operator, name)
        for name in [
            "add",
            "sub",
            "mul",
            "floordiv",
            "truediv",
            "mod",
            "neg",
            "pow",
            "eq",
            "ne",
            "ge",
            "gt",
            "le",
            "lt",
        ]
    },
    **{name: getattr(torch, name) for name in ("sym_max", "sym_min", "sym_float", "sym_int", "sym_not")},
    **{name: getattr(math, name) for name in ("floor", "ceil", "trunc")},
}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "getitem": item_of, **{name: Scalar(name, function) for name, function in _ARITHMETIC.items()},
}  # fmt: skip
NAMES: dict[Any, str] = {
    **{function: name for name, function in _ARITHMETIC.items()},
    **{function: name for name, function in FUNCTIONS.items()},
    operator.getitem: "getitem",
}
"""Function → its name in a program, for networks and for programs that were loaded and are exported again."""


def __getattr__(name: str) -> Any:
    """Provide the `Scalar` functions under the names in fx's generated code."""
    found = FUNCTIONS.get(name.removeprefix("scalar_")) if name.startswith("scalar_") else None
    if found is None:
        raise AttributeError(name)
    return found


def allowed_operator(word: Any) -> Callable[..., Any]:
    """The operator with this name in a program. Raises BundleError if it is not on the allowlist.

    >>> allowed_operator("aten.relu.default").name()
    'aten::relu'
    """
    if not isinstance(word, str):
        raise BundleError(f"the program has the operator {str(word)[:80]!r}, which is not allowed.")
    if word in FUNCTIONS:
        return FUNCTIONS[word]
    parts = word.split(".")
    if len(parts) != 3 or parts[0] != "aten" or not _allowed(parts[1], parts[2]):
        raise BundleError(f"the program has the operator {word[:80]!r}, which is not allowed.")
    found = getattr(getattr(torch.ops.aten, parts[1], None), parts[2], None)
    if not isinstance(found, torch._ops.OpOverload):
        raise BundleError(f"the program has the operator {word[:80]!r}, which this torch does not have.")
    schema = found._schema
    if not any("Tensor" in str(part.type) for part in (*schema.arguments, *schema.returns)):
        raise BundleError(f"the program has the operator {word!r}, which is not allowed.")
    if any("str" in str(a.type) and a.name not in WORDS for a in schema.arguments):
        raise BundleError(f"the program has the operator {word!r}, which is not allowed.")
    return found


def _allowed(name: str, overload: str) -> bool:
    known = name in POINTWISE or name in OTHERS or (name.endswith("_") and name[:-1] in POINTWISE)
    return known and "out" not in overload.split("_") and f"{name}.{overload}" not in _OVERLOADS


def called(word: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Callable[..., Any]:
    """The function that a step of a program calls, after a check of its constant arguments. Raises BundleError."""
    found = allowed_operator(word)
    if isinstance(found, torch._ops.OpOverload):
        _check_arguments(found, args, kwargs)
        return GUARDED.get(found, found)
    if kwargs or any(isinstance(value, list | str) for value in args):
        raise BundleError("the program is damaged: arithmetic takes numbers only.")
    return found


def _check_arguments(function: torch._ops.OpOverload[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Refuse numbers, lists and strings that no network has as arguments of an operator. Raises BundleError."""
    schema = function._schema
    name = schema.name.partition("::")[2]
    if len(args) > len(schema.arguments):
        raise BundleError(f"the program is damaged: {name} has {len(args)} arguments.")
    given = {a.name: value for a, value in zip(schema.arguments, args, strict=False)} | dict(kwargs)
    for a in schema.arguments:
        if a.name not in given:
            if not a.has_default_value():
                raise BundleError(f"the program is damaged: {name} lacks its argument {a.name}.")
            continue
        if any(kind in str(a.real_type) for kind in _TAGGED) and not _is_tagged(given[a.name]):
            raise BundleError(f"the program is damaged: {name} has a number for its argument {a.name}.")
        _check_value(name, a.name, given[a.name], str(a.type))
    made = math.prod(max(1, abs(n)) for value in given.values() for n in _whole(value))
    if name in _MAKERS and made > LARGEST_MADE:
        raise BundleError(f"the program makes a tensor of {made:.1g} elements by {name}.")


def _is_tagged(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and "node" not in value)


def _check_value(function: str, argument: str, value: Any, kind: str) -> None:
    if isinstance(value, str) and (len(value) > LONGEST or "str" not in kind):
        raise BundleError(f"the program is damaged: {function} has a text for its argument {argument}.")
    if isinstance(value, list):
        if len(value) > LONGEST:
            raise BundleError(f"the program is damaged: {function} has a list of {len(value)} for {argument}.")
        for part in value:
            _check_value(function, argument, part, kind)
    if type(value) is int:
        most = LARGEST_WINDOW if argument in _WINDOWS else LARGEST_SIZE
        if function in ("slice", "slice_scatter") and argument in ("start", "end"):
            most = LARGEST_INT
        if abs(value) > most and "Scalar" not in kind and "Tensor" not in kind and "number" not in kind:
            raise BundleError(f"the program is damaged: {function} has {argument} {value:.3g}.")
        if abs(value) > LARGEST_INT:
            raise BundleError(f"the program is damaged: {function} has {argument} {value:.3g}.")


def _whole(value: Any) -> Iterator[int]:
    if type(value) is int:
        yield value
    elif isinstance(value, list):
        for part in value:
            yield from _whole(part)


def check_tensor(name: str, tensor: Tensor) -> Tensor:
    """Return the tensor if it is a dense CPU tensor of a known dtype. Raises BundleError."""
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    if not plain or tensor.is_nested or tensor.dtype not in DTYPES.values():
        raise BundleError(
            f"the program's tensor {name!r} is {tensor.dtype}, {tensor.layout}: it must be dense, of a common type."
        )
    return tensor
