"""Whole steps of BEiT and EVA: omma's setups, and the published training code; see whole_hidden.py."""

import sys
import types
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from published.whole import Setup, Whole, collected, encoder, fill, transplant
from published.whole_hidden import (
    BATCH,
    DIM,
    GRID,
    IMAGE,
    NARROW,
    PATCH,
    Weights,
    epochs,
    filled,
    narrowed,
    on_cpu,
    rows,
    same_drops,
    setup,
)
from torch import Tensor, nn

from omma.backbones.vit import ViT
from omma.core.protocols import Batch, Context, Extras, Preprocess, Recipe
from omma.methods import beit, eva
from omma.methods.shared.masking import blocks
from omma.weights import Model

if TYPE_CHECKING:
    from published.references import References

OUT = 7  # codes, and the width of the tower's projection


def trained(layer: str) -> Model:
    """A network whose outputs are targets, with a linear map beside it."""
    tower = ViT("toy", depth=1, dim=DIM, heads=2, hidden=32, patch=PATCH, image_size=IMAGE).double()
    fill(tower)
    plain = Preprocess(
        size=IMAGE, channels=3, low=(0.0,) * 3, high=(1.0,) * 3, mean=(0.0,) * 3, std=(1.0,) * 3
    )
    weight = torch.sin(torch.arange(OUT * DIM, dtype=torch.float64)).view(OUT, DIM)
    return Model(tower, plain, extras=Extras({f"{layer}.weight": weight}))


def make_beit() -> tuple[Any, Recipe]:
    recipe = narrowed(beit.paper(224, "beit-b/16"), block_share=4 / 16)
    network = encoder("beit-b/16", recipe, IMAGE, patch=PATCH, **NARROW)
    context = Context(image_size=IMAGE, model=trained("codes"))
    return filled(beit.Method(network, recipe.config, context)), recipe


def make_eva() -> tuple[Any, Recipe]:
    recipe = narrowed(eva.paper(224, "eva-g/14"), block_share=4 / 16)
    network = encoder("eva-g/14", recipe, IMAGE, patch=PATCH, **NARROW)
    context = Context(image_size=IMAGE, model=trained("projection"))
    return filled(eva.Method(network, recipe.config, context)), recipe


def head_or_encoder(name: str) -> str:
    """omma's name of a parameter of BEiT's and EVA's networks."""
    if name == "mask_token":
        return "head.mask_token"
    return name.replace("lm_head.", "head.predict.") if "lm_head" in name else f"encoder.{name}"


def with_blocks(config: Any) -> Callable[[Batch], Any]:
    """What BEiT's and EVA's loops take: images for both networks, and masks."""

    def prepare(batch: Batch) -> Any:
        images = batch.views[0][:, 0]
        return (images, images, blocks(batch.key, GRID, config.mask_share, config.block_share)), None

    return prepare


def theirs_beit(references: "References", setup: Setup, before: Weights) -> Weights:
    """The README's command for ImageNet-1k."""
    official = references.load("microsoft/unilm", "run_beit_pretraining", inside="beit")
    method, _ = make_beit()
    command = (
        f"--batch_size {BATCH} --num_mask_patches 75 --model beit_base_patch16_224_8k_vocab --lr 1.5e-3 "
        "--warmup_epochs 10 --epochs 800 --clip_grad 3.0 --drop_path 0.1 --layer_scale_init_value 0.1"
    )
    with mock.patch.object(sys, "argv", ["run_beit_pretraining.py", *command.split()]):
        args = official.get_args()
    network = official.modeling_pretrain.VisionTransformerForMaskedImageModeling(
        img_size=IMAGE, patch_size=PATCH, vocab_size=OUT, embed_dim=DIM, depth=2, num_heads=2, mlp_ratio=4,
        norm_layer=partial(nn.LayerNorm, eps=1e-6), init_values=args.layer_scale_init_value,
        use_shared_rel_pos_bias=args.rel_pos_bias, use_abs_pos_emb=args.abs_pos_emb,
        drop_path_rate=args.drop_path,
    ).double()  # fmt: skip
    transplant(network, before, head_or_encoder)

    class Tokenizer:
        """omma's, with the published interface."""

        def get_codebook_indices(self, images: Tensor) -> Tensor:
            return method.tokenizer(images, GRID).argmax(-1)

    with on_cpu(official.utils), same_drops(network):
        optimizer = official.create_optimizer(args, network)
        rates = official.utils.cosine_scheduler(
            args.lr, args.min_lr, args.epochs, setup.epoch, warmup_epochs=args.warmup_epochs,
            warmup_steps=args.warmup_steps,
        )  # fmt: skip
        decays = official.utils.cosine_scheduler(
            args.weight_decay, args.weight_decay, args.epochs, setup.epoch
        )
        scaler = official.NativeScaler()
        scaler.state_dict = lambda: {"scale": 1.0}  # which a scaler without a GPU lacks
        for epoch, data in epochs(setup, with_blocks(method.config)):
            official.train_one_epoch(
                network, Tokenizer(), data, optimizer, torch.device("cpu"), epoch, scaler, args.clip_grad,
                start_steps=epoch * setup.epoch, lr_schedule_values=rates, wd_schedule_values=decays,
            )  # fmt: skip
    return collected(network.named_parameters(), head_or_encoder)


def theirs_eva(references: "References", setup: Setup, before: Weights) -> Weights:
    """The README's command, without DeepSpeed."""
    official = references.load("baaivision/EVA", "run_eva_pretraining", inside="EVA-01/eva")
    method, _ = make_eva()
    command = (
        f"--batch_size {BATCH} --num_mask_patches 105 --layer_scale_init_value 0.0 --lr 1e-3 "
        "--opt_betas 0.9 0.98 --opt_eps 1e-6 --drop_path 0.1 --epochs 150 --mixup 0.0 --color_jitter 0.0 "
        "--warmup_epochs 2"
    )
    with mock.patch.object(sys, "argv", ["run_eva_pretraining.py", *command.split()]):
        args, _ = official.get_args()
    modeling = official.modeling_pretrain
    network = modeling.VisionTransformerForMaskedImageModeling(
        img_size=IMAGE, patch_size=PATCH, embed_dim=DIM, depth=2, num_heads=2, mlp_ratio=4, qkv_bias=True,
        norm_layer=partial(modeling.LayerNormWithForceFP32, eps=1e-6), predict_feature_dim=OUT,
        init_values=args.layer_scale_init_value, use_shared_rel_pos_bias=args.rel_pos_bias,
        use_abs_pos_emb=args.abs_pos_emb, drop_path_rate=args.drop_path,
    ).double()  # fmt: skip
    transplant(network, before, head_or_encoder)
    teacher = types.SimpleNamespace(infer_image=lambda inputs: method.target(inputs["image"][0], GRID))
    with on_cpu(official.utils), same_drops(network):
        optimizer = official.create_optimizer(args, network)
        rates = official.utils.cosine_scheduler(
            args.lr, args.min_lr, args.epochs, setup.epoch, warmup_epochs=args.warmup_epochs,
            warmup_steps=args.warmup_steps, sched_type=args.lr_sched_type,
        )  # fmt: skip
        decays = official.utils.cosine_scheduler(
            args.weight_decay, args.weight_decay, args.epochs, setup.epoch
        )
        scaler = official.NativeScaler()
        scaler.state_dict = lambda: {"scale": 1.0}
        for epoch, data in epochs(setup, with_blocks(method.config)):
            official.train_one_epoch(
                network, teacher, data, optimizer, torch.device("cpu"), epoch, scaler, setup.epoch,
                max_norm=args.clip_grad, start_steps=epoch * setup.epoch, lr_schedule_values=rates,
                wd_schedule_values=decays, args=args,
            )  # fmt: skip
    return collected(network.named_parameters(), head_or_encoder)


LOOP = "engine_for_pretraining.train_one_epoch"
CPU = "its loop for one GPU, without DeepSpeed"
ROWS: list[Whole] = [
    *rows(
        setup("beit", make_beit, 1, 800), 400, "BEiT", "its middle", "microsoft/unilm", f"beit/{LOOP}",
        theirs_beit,
    ),
    *rows(
        setup("eva", make_eva, 4, 150), 300, "EVA", "its middle", "baaivision/EVA", f"EVA-01/eva/{LOOP}",
        theirs_eva, CPU,
    ),
]  # fmt: skip
SETUPS = [row.setup for row in ROWS]
