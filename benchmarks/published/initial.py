"""Networks as the published codes initialise them, and statistics of each kind of parameter."""

import contextlib
import re
import types
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import torch
from published.references import References
from torch import Tensor, nn

from omma import backbones
from omma.weights.published import recognise

Norm = partial(nn.LayerNorm, eps=1e-6)
SMALL: dict[str, Any] = {"embed_dim": 384, "num_heads": 6, "mlp_ratio": 4, "qkv_bias": True}
KINDS = (  # patterns of omma's names; the first that fits
    ("patch kernel", r"patch_embed\.proj\.weight"),
    ("patch bias", r"patch_embed\.proj\.bias"),
    ("class token", r"cls_token"),
    ("distillation token", r"dist_token"),
    ("registers", r"reg_token"),
    ("positions", r"pos_embed"),
    ("relative positions", r".*relative_position_bias_table"),
    ("qkv", r".*\.(qkv|[qkv]_proj)\.weight"),
    ("proj", r".*\.attn\.proj\.weight"),
    ("fc1", r".*\.mlp\.fc1(_[gx])?\.weight"),
    ("fc2", r".*\.mlp\.fc2\.weight"),
    ("merging", r".*\.reduction\.weight"),
    ("attention's biases", r".*\.attn\..*bias"),
    ("fc1's bias", r".*\.mlp\.fc1(_[gx])?\.bias"),
    ("fc2's bias", r".*\.mlp\.fc2\.bias"),
)


class Network(NamedTuple):
    """A published network and the value of omma's option `init` that belongs to it."""

    name: str
    source: str
    init: str
    make: Callable[[References], nn.Module]
    by_layer: bool = False  # compare proj and fc2 of the first and the last layer, which are rescaled
    without: tuple[str, ...] = ()  # kinds that the installed libraries draw otherwise than the code's own


class Statistics(NamedTuple):
    """Of values below 1: timm's `trunc_normal_` draws a -2, a hundred deviations, once in 2^24 values."""

    count: int
    mean: float
    deviation: float
    kurtosis: float  # excess

    @classmethod
    def of(cls, x: Tensor) -> "Statistics":
        x = x[x.abs() < 1].double()
        centred = x - x.mean()
        square = float(centred.square().mean())
        kurtosis = float(centred.pow(4).mean()) / square**2 - 3 if square else 0.0
        return cls(len(x), float(x.mean()), square**0.5, kurtosis)

    def apart(self, other: "Statistics") -> float:
        """The largest difference of mean, deviation and kurtosis, in standard errors; for constants 0 or inf.

        Errors of the kurtosis are those of a normal distribution, the largest of the distributions here.
        """
        if self.deviation == 0 or other.deviation == 0:
            return 0.0 if (self.mean, self.deviation) == (other.mean, other.deviation) else torch.inf
        n = (1 / self.count + 1 / other.count) ** 0.5
        deviation = (self.deviation + other.deviation) / 2
        peaked = max((self.kurtosis + other.kurtosis) / 2 + 2, 0.1)
        return max(
            abs(self.mean - other.mean) / (deviation * n),
            abs(self.deviation - other.deviation) / (deviation * n * (peaked / 4) ** 0.5),
            abs(self.kurtosis - other.kurtosis) / (24**0.5 * n),
        )


def _kinds(tensors: dict[str, Tensor], by_layer: bool) -> dict[str, list[Tensor]]:
    kinds: dict[str, list[Tensor]] = {}
    last = max(int(m[1]) for name in tensors if (m := re.search(r"blocks\.(\d+)\.", name)))
    for name, x in tensors.items():
        kind = next((kind for kind, pattern in KINDS if re.fullmatch(pattern, name)), None)
        if kind is None:
            assert "norm" in name or "gamma" in name, f"{name} is of no kind"
            continue
        if by_layer and kind in ("proj", "fc2"):
            match = re.search(r"blocks\.(\d+)\.", name)
            assert match is not None
            layer = int(match[1])
            if layer not in (0, last):
                continue
            kind = f"{kind} of layer {layer + 1}"
        kinds.setdefault(kind, []).append(x.detach().flatten())
    return kinds


def compare(
    network: Network, references: References, seeds: int
) -> Iterator[tuple[str, Statistics, Statistics]]:
    """Each kind of parameter with statistics of omma's network and of the published one."""
    both: tuple[dict[str, list[Tensor]], ...] = ({}, {})
    for seed in range(seeds):
        torch.manual_seed(seed)
        theirs = recognise(network.make(references).state_dict())
        torch.manual_seed(1000 + seed)
        ours = backbones.build(**{**theirs.spec, "init": network.init})
        fixed = {n for n, p in ours.named_parameters() if not p.requires_grad}
        for side, tensors in zip(both, (dict(ours.named_parameters()), theirs.tensors), strict=True):
            trained = {n: x for n, x in tensors.items() if n not in fixed}
            for kind, found in _kinds(trained, network.by_layer).items():
                side.setdefault(kind, []).extend(found)
    assert both[0].keys() == both[1].keys(), both[0].keys() ^ both[1].keys()
    for kind, found in both[0].items():
        if kind not in network.without:
            yield kind, Statistics.of(torch.cat(found)), Statistics.of(torch.cat(both[1][kind]))


# ---------------------------------------------------------------- the published networks
def _dino(references: References) -> nn.Module:
    official = references.load("facebookresearch/dino", "vision_transformer")
    return official.VisionTransformer(patch_size=16, depth=2, norm_layer=Norm, **SMALL)


def _ibot(references: References) -> nn.Module:
    official = references.load("bytedance/ibot", "models.vision_transformer")
    return official.VisionTransformer(patch_size=16, depth=2, norm_layer=Norm, **SMALL)


def _dinov2(references: References, registers: int) -> nn.Module:
    official = references.load("facebookresearch/dinov2", "dinov2.models.vision_transformer")
    shape = {"patch_size": 14, "depth": 2, "init_values": 1e-5, "block_chunks": 0}
    shape["num_register_tokens"] = registers
    return official.DinoVisionTransformer(img_size=224, ffn_layer="mlp", **shape, **SMALL)


def _mae(references: References) -> nn.Module:
    official = references.load("facebookresearch/mae", "models_mae")
    shape = {"embed_dim": 768, "depth": 2, "num_heads": 12, "decoder_depth": 1}
    return official.MaskedAutoencoderViT(patch_size=16, norm_layer=Norm, **shape)


def _moco(references: References) -> nn.Module:
    official = references.load("facebookresearch/moco-v3", "vits")
    # an attribute that older versions of timm had
    older = type("Older", (official.VisionTransformerMoCo,), {"num_tokens": 1})
    return older(patch_size=16, depth=2, norm_layer=Norm, num_classes=0, **{**SMALL, "num_heads": 12})


def _beit(references: References) -> nn.Module:
    official = references.load("microsoft/unilm", "modeling_pretrain", inside="beit")
    return official.VisionTransformerForMaskedImageModeling(
        patch_size=16, depth=12, norm_layer=Norm, init_values=0.1, use_abs_pos_emb=False,
        use_shared_rel_pos_bias=True, vocab_size=8, **SMALL,
    )  # fmt: skip


def _simmim(references: References) -> nn.Module:
    official = references.load("microsoft/SimMIM", "models.simmim")
    encoder = official.VisionTransformerForSimMIM(
        img_size=224, patch_size=16, num_classes=0, depth=12, norm_layer=Norm, init_values=0.1,
        use_abs_pos_emb=False, use_shared_rel_pos_bias=True, use_mean_pooling=False, **SMALL,
    )  # fmt: skip
    return official.SimMIM(encoder, 16)


def _simmim_swin(references: References) -> nn.Module:
    official = references.load("microsoft/SimMIM", "models.simmim")
    encoder = official.SwinTransformerForSimMIM(
        img_size=192, patch_size=4, num_classes=0, embed_dim=128, depths=[2, 2], num_heads=[4, 8],
        window_size=6, mlp_ratio=4.0, qkv_bias=True,
    )  # fmt: skip
    return official.SimMIM(encoder, 8)


def _eva(references: References) -> nn.Module:
    official = references.load("baaivision/EVA", "modeling_pretrain", inside="EVA-01/eva")
    return official.VisionTransformerForMaskedImageModeling(
        patch_size=14, depth=12, norm_layer=Norm, init_values=0.0, init_std=0.015, **SMALL
    )


def _eva02(references: References) -> nn.Module:
    apex = types.ModuleType("apex.normalization")
    apex.__dict__["FusedLayerNorm"] = nn.LayerNorm
    with mock.patch.dict("sys.modules", {"apex": types.ModuleType("apex"), "apex.normalization": apex}):
        official = references.load("baaivision/EVA", "modeling_pretrain", inside="EVA-02/asuka")
    with contextlib.redirect_stdout(None):
        return official.VisionTransformerForMaskedImageModeling(
            patch_size=14, embed_dim=768, depth=2, num_heads=12, mlp_ratio=8 / 3, qkv_bias=True,
            norm_layer=Norm, naiveswiglu=True, subln=True, xavier_normal_init=True, rope=True,
        )  # fmt: skip


def _deit(references: References) -> nn.Module:
    official = references.load("facebookresearch/deit", "models")
    return official.DistilledVisionTransformer(patch_size=16, depth=2, norm_layer=Norm, **SMALL)


def _clip(references: References) -> nn.Module:
    official = references.file("openai/CLIP", "clip/model.py")
    vision = {"image_resolution": 224, "vision_layers": 2, "vision_width": 768, "vision_patch_size": 32}
    text = {"context_length": 7, "vocab_size": 9, "transformer_width": 64, "transformer_heads": 1}
    return official.CLIP(embed_dim=512, **vision, **text, transformer_layers=1)


NETWORKS = [
    Network("DINO, ViT-S/16", "facebookresearch/dino", "dino", _dino),
    Network("iBOT, ViT-S/16", "bytedance/ibot", "dino", _ibot),
    Network("DINOv2, ViT-S/14", "facebookresearch/dinov2", "dinov2", partial(_dinov2, registers=0)),
    # loading adds the class token's position to it, since registers have none
    Network(
        "DINOv2, ViT-S/14 with registers",
        "facebookresearch/dinov2",
        "dinov2",
        partial(_dinov2, registers=4),
        without=("class token",),
    ),
    Network("MAE, ViT-B/16", "facebookresearch/mae", "mae", _mae),
    Network("MoCo v3, ViT-S/16", "facebookresearch/moco-v3", "moco", _moco),
    Network("BEiT, ViT-S/16", "microsoft/unilm", "beit", _beit, by_layer=True),
    Network("SimMIM, ViT-S/16", "microsoft/SimMIM", "simmim", _simmim, by_layer=True),
    Network("SimMIM, Swin-B, two stages", "microsoft/SimMIM", "simmim", _simmim_swin),
    Network("EVA, ViT-S/14", "baaivision/EVA", "eva", _eva, by_layer=True),
    Network("EVA-02, ViT-B/14", "baaivision/EVA", "eva02", _eva02),
    # timm 0.3.2, which it asks for, draws the class token as the others, later versions with 1e-6
    Network("DeiT, ViT-S/16", "facebookresearch/deit", "deit", _deit, without=("class token",)),
    Network("CLIP, ViT-B/32", "openai/CLIP", "clip", _clip),
]
