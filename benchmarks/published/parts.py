"""TransFG compared with the published code: its choice of parts, its contrastive loss, the whole network."""

from typing import Any

import torch
from published.comparing import (
    IMAGE,
    PATCH,
    RATE,
    STEPS,
    Differences,
    Row,
    batch,
    descend,
    leaf,
    scatter,
)
from published.references import References
from torch import Tensor, nn

from omma import backbones
from omma.backbones.adapters import transfg
from omma.losses import parts

CLASSES, STRIDE = 3, 3
DEPTH, DIM, HEADS, HIDDEN = 4, 16, 2, 64
LABELS = torch.tensor([0, 1, 0, 2])
SOURCE = "TACJu/TransFG"


def choice(references: References, differences: Differences) -> None:
    official = references.load(SOURCE, "models.modeling")
    generator = torch.Generator().manual_seed(0)
    for layers in (1, 2, 11):
        scores = 3 * torch.randn(layers, 5, 3, 50, 50, generator=generator, dtype=torch.float64)
        maps = list(scores.softmax(-1))
        theirs = official.Part_Attention()([x.clone() for x in maps])[1]
        ours = transfg.attention_product(x.float() for x in reversed(maps))[..., 1:].argmax(-1)
        differences.note("loss", ours, theirs)


def contrast(references: References, differences: Differences) -> None:
    official = references.load(SOURCE, "models.modeling")
    generator = torch.Generator().manual_seed(1)
    for classes in (1, 4, 100):
        x = torch.randn(24, 6, generator=generator) + 1.0
        labels = torch.randint(classes, (24,), generator=generator)
        mine, yours = leaf(x)
        loss, expected = parts.contrast(mine, labels), official.con_loss(yours, labels)
        loss.backward()
        expected.backward()
        differences.note("loss", loss, expected)
        differences.note("gradient", mine.grad, yours.grad)


def whole(references: References, differences: Differences) -> None:
    official, configs = (references.load(SOURCE, f"models.{name}") for name in ("modeling", "configs"))
    config = configs.get_b16_config()
    config.patches.size, config.split, config.slide_step = (PATCH, PATCH), "overlap", STRIDE
    config.hidden_size = DIM
    config.transformer.update(mlp_dim=HIDDEN, num_heads=HEADS, num_layers=DEPTH, dropout_rate=0.0)
    shape = {"depth": DEPTH, "dim": DIM, "heads": HEADS, "hidden": HIDDEN}
    adapt = {"kind": "transfg", "stride": STRIDE}
    encoder = backbones.build(name=f"vit/{PATCH}", image_size=IMAGE, adapt=adapt, **shape)
    ours = nn.ModuleDict({"encoder": encoder, "head": nn.Linear(DIM, CLASSES)})
    scatter(ours)
    theirs = official.VisionTransformer(config, IMAGE, CLASSES).double()
    seen: list[Tensor] = []
    theirs.transformer.encoder.part_select.register_forward_hook(lambda *args: seen.append(args[2][1]))
    for p, twin in _twins(ours, theirs):
        twin.data.copy_(p.data)
    for step in range(STEPS):
        images = batch(step, (1, IMAGE)).views[0][:, 0]
        features: Any = encoder(images)
        logits = ours["head"](features.pooled)
        loss = nn.functional.cross_entropy(logits, LABELS) + parts.contrast(features.pooled, LABELS)
        loss.backward()
        expected, _ = theirs(images.double(), LABELS)
        expected.backward()
        assert isinstance(encoder, transfg.Parts)
        assert (encoder.chosen(images) == seen[-1]).all(), "other parts are chosen"
        differences.note("loss", loss, expected)
        differences.note("loss", logits, theirs(images.double()))
        for p, twin in _twins(ours, theirs, gradients=True):
            differences.note("gradient", p, twin)
        descend(ours, theirs, rate=RATE)


def _twins(ours: nn.ModuleDict, theirs: Any, gradients: bool = False) -> list[tuple[Tensor, Tensor]]:
    """Tensors of one meaning, ours first; queries, keys and values are one tensor in ours."""
    encoder: Any = ours["encoder"]
    inner, embeddings = theirs.transformer.encoder, theirs.transformer.embeddings
    pairs: list[tuple[Any, Any]] = [
        (encoder.cls_token, embeddings.cls_token),
        (encoder.pos_embed, embeddings.position_embeddings),
        *_layer(encoder.patch_embed.proj, embeddings.patch_embeddings),
        *_layer(encoder.norm, inner.part_norm),
        *_layer(ours["head"], theirs.part_head),
    ]
    qkv: list[tuple[Tensor, Tensor]] = []
    for own, twin in zip(encoder.blocks, [*inner.layer, inner.part_layer], strict=True):
        for a, b in (
            (own.norm1, twin.attention_norm),
            (own.norm2, twin.ffn_norm),
            (own.mlp.fc1, twin.ffn.fc1),
            (own.mlp.fc2, twin.ffn.fc2),
            (own.attn.proj, twin.attn.out),
        ):
            pairs += _layer(a, b)
        three = (twin.attn.query, twin.attn.key, twin.attn.value)
        for name in ("weight", "bias"):
            p = getattr(own.attn.qkv, name)
            chunks = (p.grad if gradients else p).chunk(3)
            others = [getattr(each, name) for each in three]
            qkv += zip(chunks, [x.grad if gradients else x for x in others], strict=True)
    return [(a.grad, b.grad) if gradients else (a, b) for a, b in pairs] + qkv


def _layer(a: Any, b: Any) -> list[tuple[Tensor, Tensor]]:
    return [(a.weight, b.weight), (a.bias, b.bias)]


ROWS = [
    Row(
        "transfg-choice", "TransFG's choice of parts, 1, 2 and 11 layers (patches' numbers)", SOURCE,
        "Part_Attention", choice, "theirs multiplies whole matrices, ours one row",
    ),
    Row("transfg-contrast", "TransFG's contrastive loss", SOURCE, "con_loss", contrast),
    Row(
        "transfg", "TransFG whole: overlapping patches, chosen parts, both losses", SOURCE,
        "VisionTransformer", whole, "without dropout; the same parts are chosen in every step",
    ),
]  # fmt: skip
