"""Attention whose heads can be removed.

Some well-known modules assume that all heads together are as wide as their input, and so break without some of
their heads. Here are the same computations with widths read off the weights. `adapt` puts them in place; names and
shapes of parameters stay, so state dicts fit.
"""

# mypy: disable-error-code=no-untyped-call
from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MultiheadAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` of one input with itself (or of equally wide ones), without added keys."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As the base class: ``[N, L, E]`` with ``batch_first``, else ``[L, N, E]``; ``[L, E]`` without a batch."""
        unbatched, same = query.ndim == 2, query is key and key is value
        batch_first = self.batch_first or unbatched
        q, k, v = self._projected(query, key, value, same)  # heads are cut from the last dimension
        if not batch_first:
            q, k, v = (t.transpose(0, 1) for t in (q, k, v))
        if unbatched:
            q, k, v = (t[None] for t in (q, k, v))
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v))  # [N, H, L, D]
        bias = self._bias(attn_mask, key_padding_mask, q)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q @ k.transpose(-1, -2) * k.shape[-1] ** -0.5
            whole = (scores if bias is None else scores + bias).softmax(-1)
            attended = F.dropout(whole, dropout) @ v
            weights = whole.mean(1) if average_attn_weights else whole
            weights = weights[0] if unbatched else weights
        else:
            attended = F.scaled_dot_product_attention(q, k, v, bias, dropout)
        x = attended.transpose(1, 2).flatten(2)
        x = x[0] if unbatched else x if batch_first else x.transpose(0, 1)
        return self.out_proj(x), weights

    def _projected(self, query: Tensor, key: Tensor, value: Tensor, same: bool) -> Any:
        assert self.in_proj_weight is not None
        if same:
            return F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        weights = self.in_proj_weight.chunk(3)
        biases = self.in_proj_bias.chunk(3) if self.in_proj_bias is not None else (None, None, None)
        return [F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True)]

    def _bias(self, mask: Tensor | None, padding: Tensor | None, q: Tensor) -> Tensor | None:
        """The sum of both masks, to be added to the scores ``[N or 1, H or 1, L, S]``."""
        found = None
        if mask is not None:
            found = _additive(mask, q)
            found = found.unflatten(0, (len(q), -1)) if found.ndim == 3 else found[None, None]
        if padding is not None:
            own = _additive(padding, q)[..., None, None, :]
            found = own if found is None else found + own
        return found


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))


def _windowed(self: Any, x: Tensor) -> Tensor:
    """Attention in shifted windows (arXiv:2103.14030), ``[B, H, W, C]``; cosine attention if there is a logit scale."""
    bias = self.get_relative_position_bias()
    height, width = x.shape[1:3]
    window = self.window_size
    x = F.pad(x, (0, 0, 0, -width % window[1], 0, -height % window[0]))
    rows, columns = x.shape[1] // window[0], x.shape[2] // window[1]
    # a window that covers the whole side needs no shift
    shift = [0 if w >= n else s for w, n, s in zip(window, x.shape[1:3], self.shift_size, strict=True)]
    if any(shift):
        x = x.roll((-shift[0], -shift[1]), (1, 2))
    x = x.unflatten(2, (columns, window[1])).unflatten(1, (rows, window[0]))  # [B, r, h, c, w, C]
    x = x.transpose(2, 3).flatten(3, 4).flatten(0, 2)  # [B r c, h w, C]
    scale = getattr(self, "logit_scale", None)
    zero_keys = scale is not None and self.qkv.bias is not None
    qkv = F.linear(x, self.qkv.weight, _with_zero_key(self.qkv.bias)) if zero_keys else self.qkv(x)
    q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    if scale is not None:
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-1, -2)
        scores = scores * scale.clamp(max=math.log(100.0)).exp()
    else:
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    scores = scores + bias
    if any(shift):
        mask = _shift_mask(rows, columns, window, shift, x)  # [r c, h w, h w]
        scores = (scores.unflatten(0, (-1, rows * columns)) + mask[:, None]).flatten(0, 1)
    x = F.dropout(scores.softmax(-1), self.attention_dropout, self.training) @ v
    x = F.dropout(self.proj(x.transpose(1, 2).flatten(2)), self.dropout, self.training)
    x = x.unflatten(0, (-1, rows, columns)).unflatten(3, tuple(window))  # [B, r, c, h, w, C]
    x = x.transpose(2, 3).flatten(3, 4).flatten(1, 2)
    if any(shift):
        x = x.roll((shift[0], shift[1]), (1, 2))
    return x[:, :height, :width].contiguous()


def _relative(self: Any, x: Tensor) -> Tensor:
    """Attention within groups of positions, with a bias for their distance (arXiv:2204.01697), ``[B, G, P, C]``."""
    q, k, v = (t.unflatten(-1, (self.n_heads, -1)).transpose(2, 3) for t in self.to_qkv(x).chunk(3, -1))
    scores = q @ (k * self.scale_factor).transpose(-1, -2) + self.get_relative_positional_bias()
    return self.merge((scores.softmax(-1) @ v).transpose(2, 3).flatten(3))  # type: ignore[no-any-return]


def _with_zero_key(bias: Tensor) -> Tensor:
    """The bias of queries, keys and values with zeros for the keys."""
    query, key, value = bias.chunk(3)
    return torch.cat([query, torch.zeros_like(key), value])


def _shift_mask(rows: int, columns: int, window: list[int], shift: list[int], like: Tensor) -> Tensor:
    """-100 between positions of a window that were not neighbours before the shift."""

    def parts(count: int, length: int, by: int) -> Tensor:
        place = torch.arange(count * length, device=like.device)
        found = (place >= count * length - length).long() + (place >= count * length - by).long()
        return found if by else torch.zeros_like(place)

    down, across = parts(rows, window[0], shift[0]), parts(columns, window[1], shift[1])
    label = (3 * down[:, None] + across).unflatten(1, (columns, window[1])).unflatten(0, (rows, window[0]))
    label = label.transpose(1, 2).flatten(2).flatten(0, 1)  # [r c, h w]
    apart = label[:, None] != label[:, :, None]
    return torch.zeros_like(apart, dtype=like.dtype).masked_fill(apart, -100.0)


def _plain(module: nn.MultiheadAttention) -> bool:
    whole = module.in_proj_weight is not None and module.bias_k is None and module.bias_v is None
    return whole and not module.add_zero_attn


_KINDS = {
    ("torchvision.models.swin_transformer", "ShiftedWindowAttention"): _windowed,
    ("torchvision.models.swin_transformer", "ShiftedWindowAttentionV2"): _windowed,
    ("torchvision.models.maxvit", "RelativePositionalMultiHeadAttention"): _relative,
}
_derived: dict[type, type] = {}


def _adapted(module: nn.Module) -> type | None:
    """The adapted class for a module; None where its own will do."""
    kind = type(module)
    if isinstance(module, nn.MultiheadAttention) and kind is nn.MultiheadAttention and _plain(module):
        return MultiheadAttention
    forward = _KINDS.get((kind.__module__, kind.__qualname__))
    if forward is None:
        return None
    if kind not in _derived:
        _derived[kind] = type(kind.__name__, (kind,), {"forward": forward, "__module__": __name__})
    return _derived[kind]


def adapt(model: nn.Module) -> Callable[[], None]:
    """Give modules that assume all heads the adapted classes. Returns a function that undoes it.

    >>> attention = nn.MultiheadAttention(8, 2)
    >>> undo = adapt(attention)
    >>> type(attention) is MultiheadAttention
    True
    >>> undo()
    >>> type(attention) is nn.MultiheadAttention
    True
    """
    changed: list[tuple[Any, type]] = []
    nested_tensors: list[Any] = []
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder) and getattr(module, "use_nested_tensor", False):
            nested_tensors.append(module)  # with a padding mask; only the fused path takes nested tensors
            module.use_nested_tensor = False
        kind = _adapted(module)
        if kind is not None:
            changed.append((module, type(module)))
            module.__class__ = kind
            if isinstance(module, MultiheadAttention):
                module._qkv_same_embed_dim = False  # keeps encoders off their fused path, which knows one width only

    def undo() -> None:
        for module, kind in changed:
            module.__class__ = kind
            if kind is nn.MultiheadAttention:
                module._qkv_same_embed_dim = True
        for encoder in nested_tensors:
            encoder.use_nested_tensor = True

    return undo


@contextmanager
def adapted(model: nn.Module) -> Iterator[None]:
    """Within this context modules have the adapted classes."""
    undo = adapt(model)
    try:
        yield
    finally:
        undo()


@contextmanager
def without_fast_path() -> Iterator[None]:
    """`nn.MultiheadAttention` and `nn.TransformerEncoder` run as operators of their own parts.

    Their fast path runs fused operators on nested tensors, which cannot be followed.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
