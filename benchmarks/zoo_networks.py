"""The networks of the zoo: every torchvision classifier, and eighty timm networks chosen for variety."""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

CLASSES = 10
LARGE = "|".join(
    (r"(densenet(161|201)|efficientnet_(b[5-7]|v2_[lm])|vit_[lh]_|vgg1[3-9])", r"(convnext|swin)\w*_(base|large|b)$",
     r"regnet_._(8|16|32|128)gf", r"res\w+(101|152)\w*$")
)  # fmt: skip
SIZES = (64, 96, 128, 160, 224, 256, 299, 0)

TIMM = """
vgg11 resnet18 resnet50d resnet50_gn resnetblur50 wide_resnet50_2 resnetv2_50x1_bit seresnet50 ecaresnet26t skresnet18
resnest14d gcresnet33ts sebotnet33ts_256 resnext50_32x4d regnetx_002 regnety_004 regnetz_b16 nf_regnet_b0 nfnet_l0
densenet121 ese_vovnet19b_dw dla34 dla46x_c dpn68 cspresnet50 cs3darknet_s darknet53
inception_v3 inception_v4 inception_next_atto xception41 selecsls42 hrnet_w18_small res2net50_26w_4s
mobilenetv1_100 mobilenetv2_100 mobilenetv3_small_100 mobilenetv4_conv_small mobileone_s0 repvgg_a0 repvit_m0_9
repghostnet_050 semnasnet_075 efficientnet_b0 efficientnetv2_rw_t mixnet_s rexnet_100 ghostnet_100 lcnet_050 tinynet_e
starnet_s1 fasternet_t0 hgnetv2_b0 convnext_atto convnextv2_atto convmixer_768_32 convformer_s18 poolformerv2_s12
edgenext_xx_small mixer_s32_224 resmlp_12_224 gmlp_ti16_224 sequencer2d_s
vit_tiny_patch16_224 vit_relpos_small_patch16_224 deit_tiny_patch16_224 deit3_small_patch16_224 eva02_tiny_patch14_224
beit_base_patch16_224 cait_xxs24_224 xcit_nano_12_p16_224 pit_ti_224 levit_128s convit_tiny
swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 pvt_v2_b0 mobilevit_xxs mobilevitv2_050
maxvit_pico_rw_256 coatnet_nano_rw_224 efficientformer_l1 visformer_tiny tiny_vit_5m_224 focalnet_tiny_srf
""".split()  # noqa: SIM905


def names() -> list[str]:
    """Names of all networks, torchvision's first."""
    import timm
    import torchvision.models

    known = set(timm.list_models())
    return [f"torchvision:{n}" for n in torchvision.models.list_models(module=torchvision.models)] + [
        f"timm:{n}" for n in TIMM if n in known
    ]


def in_turn() -> list[str]:
    """All networks in the order of trial: shuffled, so that a part is a fair sample, with the largest last."""
    mixed = sorted(names())
    random.Random(0).shuffle(mixed)
    return sorted(mixed, key=lambda name: re.search(LARGE, name) is not None)


def build(name: str) -> tuple[nn.Module, Tensor]:
    """The network with random weights, and an example input at the smallest resolution that works."""
    failure: Exception | None = None
    for size in SIZES:
        torch.manual_seed(0)
        try:
            model, side = _make(name, size)
            example = torch.randn(1, 3, side, side)
            with torch.no_grad():
                model(example)
                copy.deepcopy(model).train()(torch.cat([example, example]))
        except Exception as error:  # noqa: BLE001  (too small for this network, in any of many ways)
            failure = error
            continue
        return _lively(model), example
    raise RuntimeError(f"does not run at any size: {failure}")


def _make(name: str, size: int) -> tuple[nn.Module, int]:
    library, _, short = name.partition(":")
    if library == "timm":
        import timm

        side = size or timm.get_pretrained_cfg(short).input_size[1]
        options = [{"img_size": side}, {}] if size else [{}]
        return _first(lambda o: timm.create_model(short, num_classes=CLASSES, **o), options).eval(), side
    from torchvision.models import get_model

    side = size or 224
    options = [{"image_size": side}, {"init_weights": False}, {}]
    return _first(lambda o: get_model(short, num_classes=CLASSES, **o), options).eval(), side


def _first(make: Callable[[dict[str, Any]], nn.Module], options: list[dict[str, Any]]) -> nn.Module:
    for option in options:
        try:
            return make(option)
        except TypeError:
            continue
    raise TypeError("it takes none of the options")


def _lively(model: nn.Module) -> nn.Module:
    """Randomise BatchNorm statistics and layer scales. The initial values make networks nearly linear, or dead."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.uniform_(-0.3, 0.3, generator=generator)
        for parameter in model.parameters():
            if parameter.numel() > 1 and parameter.ndim == 1 and float(parameter.abs().max()) < 1e-3:
                parameter.uniform_(-0.5, 0.5, generator=generator)
    return model
