"""timm's supervised step, as in its train.py: network, smoothed cross-entropy, its AdamW."""

from typing import Any

from common import Contender, contender_name
from setting import Setting
from torch import nn

from peers import stepper


def vit(s: Setting, classes: int = 0, **options: Any) -> nn.Module:
    """timm's network of the race's shape, with a classifier if there are classes."""
    from timm.models.vision_transformer import VisionTransformer

    size = s.shape
    return VisionTransformer(
        img_size=s.image_size,
        patch_size=s.patch,
        embed_dim=size.dim,
        depth=size.depth,
        num_heads=size.heads,
        mlp_ratio=size.ratio,
        num_classes=classes,
        **options,
    )


def supervised(s: Setting, bf16: bool) -> Contender:
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.optim import create_optimizer_v2

    (images,), labels = s.crops(), s.labels()
    model = vit(s, s.classes).to(s.device)
    criterion = LabelSmoothingCrossEntropy(smoothing=0.1)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=s.lr, weight_decay=0.05)
    step = stepper(s, bf16, lambda: criterion(model(images), labels), optimizer)
    return Contender(contender_name("timm", bf16), step, s.batch, bf16=bf16)
