"""A whole training step on images in memory: omma against lightly and transformers, in turn.

    python benchmarks/steps.py dino [--batch 32 64] [--rounds 9] [--json FILE]
    python benchmarks/steps.py mae  [--batch 64]

dino: ViT-Ti/4 at 32 px, 2x32 + 6x16 crops, K=4096, head 192-2048-2048-256: student on all crops, teacher on
the large ones, loss, backward, AdamW, moving average, centre. mae: ViT-Ti/4 at 32 px, 75 % masked, decoder of
2 layers 128 wide. The same random images for all, AdamW for all, no data loading.

omma runs its own training loop as a run does (clipping, schedules, metrics and check for finite numbers
included), in fp32 and in bf16. lightly is composed as its examples do, in fp32 and under bf16 autocast; for
DINO both with one call a crop (its DINO example) and with one call a crop size (its DINOv2 example).
transformers' ViTMAEForPreTraining runs with its default attention and with the one written out (eager).
"""

import argparse
import contextlib
import copy
import itertools
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import common
import numpy as np
import torch
from common import Contender
from torch import Tensor, nn

from omma import backbones
from omma.methods import dino, mae
from omma.protocols import Batch, Given, Key, Method, Recipe
from omma.train.loop import Position, make_optimizer, train

SIZE, LOCAL, PATCH = 32, 16, 4
DIM, DEPTH, HEADS = 192, 12, 3  # ViT-Ti
PROTOTYPES, HIDDEN, BOTTLENECK = 4096, 2048, 256
DECODER_DEPTH, DECODER_DIM, DECODER_HEADS = 2, 128, 4
STEPS = 1_000_000  # of a run that never ends


def precision(bf16: bool) -> contextlib.AbstractContextManager:
    return torch.autocast("cpu", dtype=torch.bfloat16) if bf16 else contextlib.nullcontext()


def name_of(who: str, bf16: bool, how: str = "") -> str:
    return f"{who} {'bf16' if bf16 else 'fp32'}{how and ', ' + how}"


# ---------------------------------------------------------------- omma
def loop(method: Method, recipe: Recipe, batch: Batch, bf16: bool) -> Callable[[], object]:
    """One step of omma's training loop a call."""
    steps = train(
        method,
        make_optimizer(method, recipe),
        itertools.repeat(batch),
        recipe,
        Position(0, STEPS, len(batch.key.index), 50_000),
        dtype=torch.bfloat16 if bf16 else torch.float32,
    )
    return lambda: next(steps)


def key(count: int) -> Key:
    return Key(0, np.zeros(count, np.int64), np.arange(count))


def omma_dino(crops: list[Tensor], bf16: bool) -> Contender:
    first, second, *local = crops
    config = dino.Config(
        prototypes=PROTOTYPES,
        head_hidden=HIDDEN,
        head_bottleneck=BOTTLENECK,
        local_crops=len(local),
        freeze_last_epochs=0.0,
    )
    recipe = replace(dino.small(SIZE, "vit-ti/4"), config=config)
    encoder = backbones.build(name=f"vit-ti/{PATCH}", image_size=SIZE, channels=3)
    views = (first[:, None], second[:, None], torch.stack(local, dim=1))
    step = loop(
        dino.Method(encoder, config, Given(image_size=SIZE)),
        recipe,
        Batch(views, key(len(first)), None),
        bf16,
    )
    return Contender(name_of("omma", bf16), step, len(first), ours=True)


def omma_mae(images: Tensor, bf16: bool) -> Contender:
    recipe = mae.small(SIZE, "vit-ti/4")
    config = replace(
        recipe.config,
        decoder_depth=DECODER_DEPTH,
        decoder_dim=DECODER_DIM,
        decoder_heads=DECODER_HEADS,
    )
    encoder = backbones.build(name=f"vit-ti/{PATCH}", image_size=SIZE, channels=3, positions="sincos")
    batch = Batch((images[:, None],), key(len(images)), None)
    step = loop(mae.Method(encoder, config, Given(image_size=SIZE)), recipe, batch, bf16)
    return Contender(name_of("omma", bf16), step, len(images), ours=True)


# ---------------------------------------------------------------- lightly
def timm_vit(**options: object) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=SIZE,
        patch_size=PATCH,
        embed_dim=DIM,
        depth=DEPTH,
        num_heads=HEADS,
        num_classes=0,
        **options,
    )


def lightly_dino(crops: list[Tensor], bf16: bool, per_size: bool) -> Contender:
    """As in lightly's examples/pytorch/dino.py; `per_size`: crops of a size in one call, as in dinov2.py."""
    from lightly.loss import DINOLoss
    from lightly.models.modules import DINOProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum

    backbone = timm_vit(dynamic_img_size=True)
    head = DINOProjectionHead(DIM, HIDDEN, BOTTLENECK, PROTOTYPES, freeze_last_layer=-1)
    teacher_backbone, teacher_head = (
        copy.deepcopy(backbone),
        DINOProjectionHead(DIM, HIDDEN, BOTTLENECK, PROTOTYPES),
    )
    deactivate_requires_grad(teacher_backbone)
    deactivate_requires_grad(teacher_head)
    criterion = DINOLoss(output_dim=PROTOTYPES, warmup_teacher_temp_epochs=5)
    trained = [*backbone.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)

    def student(x: Tensor) -> Tensor:
        return head(backbone(x).flatten(start_dim=1))

    def teacher(x: Tensor) -> Tensor:
        return teacher_head(teacher_backbone(x).flatten(start_dim=1))

    def step() -> None:
        update_momentum(backbone, teacher_backbone, m=0.99)
        update_momentum(head, teacher_head, m=0.99)
        with precision(bf16):
            if per_size:
                teacher_out = teacher(torch.cat(crops[:2])).chunk(2)
                student_out = [
                    *student(torch.cat(crops[:2])).chunk(2),
                    *student(torch.cat(crops[2:])).chunk(len(crops) - 2),
                ]
            else:
                teacher_out = [teacher(crop) for crop in crops[:2]]
                student_out = [student(crop) for crop in crops]
            loss = criterion(list(teacher_out), student_out, epoch=0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    how = "a call a size" if per_size else "a call a crop"
    return Contender(name_of("lightly", bf16, how), step, len(crops[0]))


class LightlyMAE(nn.Module):
    """As in lightly's examples/pytorch/mae.py."""

    def __init__(self) -> None:
        super().__init__()
        from lightly.models.modules import MAEDecoderTIMM, MaskedVisionTransformerTIMM

        vit = timm_vit()
        self.backbone = MaskedVisionTransformerTIMM(vit=vit)
        self.sequence_length = self.backbone.sequence_length
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its successor is the same network in other files
            self.decoder = MAEDecoderTIMM(
                num_patches=vit.patch_embed.num_patches,
                patch_size=PATCH,
                embed_dim=DIM,
                decoder_embed_dim=DECODER_DIM,
                decoder_depth=DECODER_DEPTH,
                decoder_num_heads=DECODER_HEADS,
            )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        from lightly.models import utils

        keep, mask = utils.random_token_mask((len(images), self.sequence_length), mask_ratio=0.75)
        encoded = self.decoder.embed(self.backbone.encode(images=images, idx_keep=keep))
        tokens = utils.repeat_token(self.decoder.mask_token, (len(images), self.sequence_length))
        tokens = utils.set_at_index(tokens, keep, encoded.type_as(tokens))
        decoded = utils.get_at_index(self.decoder.decode(tokens), mask)
        target = utils.get_at_index(utils.patchify(images, PATCH), mask - 1)  # there is no class patch
        return self.decoder.predict(decoded), target


def lightly_mae(images: Tensor, bf16: bool) -> Contender:
    model, criterion = LightlyMAE(), nn.MSELoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.5e-4)

    def step() -> None:
        with precision(bf16):
            loss = criterion(*model(images))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return Contender(name_of("lightly", bf16), step, len(images))


# ---------------------------------------------------------------- transformers
def transformers_mae(images: Tensor, bf16: bool, attention: str) -> Contender:
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    config = ViTMAEConfig(
        hidden_size=DIM,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=4 * DIM,
        image_size=SIZE,
        patch_size=PATCH,
        mask_ratio=0.75,
        norm_pix_loss=True,
        decoder_hidden_size=DECODER_DIM,
        decoder_num_hidden_layers=DECODER_DEPTH,
        decoder_num_attention_heads=DECODER_HEADS,
        decoder_intermediate_size=4 * DECODER_DIM,
        attn_implementation=attention,
    )
    model = ViTMAEForPreTraining(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.5e-4)

    def step() -> None:
        with precision(bf16):
            loss = model(pixel_values=images).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return Contender(name_of("transformers", bf16, attention), step, len(images))


# ---------------------------------------------------------------- the two races
def dino_contenders(batch: int) -> list[Contender]:
    generator = torch.Generator().manual_seed(0)
    sizes = [SIZE] * 2 + [LOCAL] * 6
    crops = [torch.randn(batch, 3, size, size, generator=generator) for size in sizes]
    return [
        *(omma_dino(crops, bf16) for bf16 in (True, False)),
        *(lightly_dino(crops, bf16, per_size) for per_size in (False, True) for bf16 in (True, False)),
    ]


def mae_contenders(batch: int) -> list[Contender]:
    images = torch.randn(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    return [
        *(omma_mae(images, bf16) for bf16 in (True, False)),
        *(lightly_mae(images, bf16) for bf16 in (True, False)),
        *(transformers_mae(images, bf16, how) for how in ("sdpa", "eager") for bf16 in (True, False)),
    ]


RACES = {"dino": dino_contenders, "mae": mae_contenders}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("method", choices=RACES)
    parser.add_argument("--batch", type=int, nargs="+", help="images a step [32 64 for dino, 64 for mae]")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    results = []
    for batch in args.batch or ([32, 64] if args.method == "dino" else [64]):
        contenders = RACES[args.method](batch)
        result = common.summary(contenders, common.take_turns(contenders, args.rounds))
        common.show(f"{args.method} step, ViT-Ti/4 at 32 px, batch {batch}", result, args.rounds)
        results.append({"method": args.method, "batch": batch, **result})
    common.save(args.json, "steps", __doc__, results)


if __name__ == "__main__":
    main()
