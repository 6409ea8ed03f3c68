"""timm's supervised step, as its train.py composes it: network, smoothed cross-entropy, its own AdamW."""

from common import Contender, called
from setting import Setting

from peers import stepper


def supervised(s: Setting, bf16: bool) -> Contender:
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.models.vision_transformer import VisionTransformer
    from timm.optim import create_optimizer_v2

    (images,), labels, size = s.crops(), s.labels(), s.shape
    model = VisionTransformer(
        img_size=s.image_size,
        patch_size=s.patch,
        embed_dim=size.dim,
        depth=size.depth,
        num_heads=size.heads,
        mlp_ratio=size.ratio,
        num_classes=s.classes,
    ).to(s.device)
    criterion = LabelSmoothingCrossEntropy(smoothing=0.1)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=s.lr, weight_decay=0.05)
    step = stepper(s, bf16, lambda: criterion(model(images), labels), optimizer)
    return Contender(called("timm", bf16), step, s.batch, bf16=bf16)
