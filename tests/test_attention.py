"""The adapted attention modules compute what the originals do."""

import pytest
import torch
from networks import assert_same, output
from torch import Tensor, nn
from torchvision.models.maxvit import RelativePositionalMultiHeadAttention
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2

from amc.graph.attention import adapt, adapted


def lively(module: nn.Module) -> nn.Module:
    """Biases and tables that are not zero."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape)
    return module.eval()


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("shape", [(3, 5, 16), (5, 16)])
@pytest.mark.parametrize("options", [{}, {"need_weights": False}, {"average_attn_weights": False}])
@pytest.mark.parametrize("masked", [False, True])
def test_multihead_attention(batch_first: bool, shape: tuple[int, ...], options: dict, masked: bool) -> None:
    module = lively(nn.MultiheadAttention(16, 4, batch_first=batch_first))
    x = torch.randn(shape)
    length = shape[0] if len(shape) == 2 or not batch_first else shape[1]
    mask = torch.ones(length, length, dtype=torch.bool).triu(1) if masked else None
    with torch.no_grad():
        wanted = module(x, x, x, attn_mask=mask, **options)
        with adapted(module):
            together = module(x, x, x, attn_mask=mask, **options)
            apart = module(x, x.clone(), x, attn_mask=mask, **options)
    for found in (together, apart):
        assert_same(found[0], wanted[0])
        assert (found[1] is None) == (wanted[1] is None)
        if wanted[1] is not None:
            assert_same(found[1], wanted[1])


def test_padding_is_not_attended_to() -> None:
    module, x = lively(nn.MultiheadAttention(16, 4, batch_first=True)), torch.randn(2, 5, 16)
    padding = torch.tensor([[False] * 5, [False, False, False, True, True]])
    with torch.no_grad():
        wanted = module(x, x, x, key_padding_mask=padding)
        with adapted(module):
            found = module(x, x, x, key_padding_mask=padding)
    assert_same(found[0], wanted[0])


@pytest.mark.parametrize("kind", [ShiftedWindowAttention, ShiftedWindowAttentionV2])
@pytest.mark.parametrize("shift", [[0, 0], [2, 2], [0, 2]])
def test_shifted_windows(kind: type, shift: list[int]) -> None:
    module, x = lively(kind(8, [4, 4], shift, 2)), torch.randn(2, 7, 9, 8)
    assert_same(*both(module, x))


def test_relative_positions() -> None:
    assert_same(*both(lively(RelativePositionalMultiHeadAttention(8, 4, 9)), torch.randn(2, 3, 9, 8)))


def both(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    wanted = output(module, x)
    with adapted(module):
        return output(module, x), wanted


def test_adapting_is_undone() -> None:
    module = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    undo = adapt(module)
    assert type(module.self_attn) is not nn.MultiheadAttention
    undo()
    assert type(module.self_attn) is nn.MultiheadAttention
    assert module.self_attn._qkv_same_embed_dim


def test_attention_with_keys_of_its_own_is_left_alone() -> None:
    module = nn.MultiheadAttention(16, 4, add_bias_kv=True)
    adapt(module)
    assert type(module) is nn.MultiheadAttention
