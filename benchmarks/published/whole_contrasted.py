"""Whole steps of MoCo v3, SimCLR, DeiT and CLIP: omma's setups, and the published training code."""

import dataclasses
import re
import types
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from published.whole import STEPS, Setup, Whole, collected, crops, encoder, fill, transplant
from published.whole_distilled import on_cpu
from published.whole_simclr import make_simclr, pairs, theirs_simclr
from torch import Tensor, nn

from omma import backbones
from omma.core.protocols import Batch, Context, Extras, Method, Preprocess, Recipe, Trained
from omma.data import text_tokenizer
from omma.methods import clip, deit, moco

if TYPE_CHECKING:
    from published.references import References

IMAGE, PATCH = 16, 4
NARROW: dict[str, Any] = {"dim": 16, "depth": 2, "heads": 2, "hidden": 64, "patch": PATCH}
MEASURED = Preprocess(
    size=IMAGE, channels=3, low=(0.0,) * 3, high=(1.0,) * 3, mean=(0.0,) * 3, std=(1.0,) * 3
)
CLASSES = tuple("abcde")
WORDS, END = 8, 513  # tokens of a text; the end's id where single bytes are tokens


def narrowed(recipe: Recipe, batch: int, **options: Any) -> Recipe:
    """The recipe for a small batch and head, without stochastic depth."""
    config = dataclasses.replace(recipe.config, **options)
    return dataclasses.replace(recipe.for_batch(batch), config=config, drop_path=0.0)


def norm(eps: float = 1e-6) -> Any:
    return partial(nn.LayerNorm, eps=eps)


# ---------------------------------------------------------------- MoCo v3
def make_moco() -> tuple[Method, Recipe]:
    recipe = narrowed(moco.paper(224, "vit-s/16"), 8, hidden=24, out=8)
    wide = {**NARROW, "dim": 48, "hidden": 192}
    del wide["heads"]  # the recipe's
    method = moco.Method(encoder("vit-s/16", recipe, IMAGE, **wide), recipe.config, Context(image_size=IMAGE))
    stem = method.get_submodule("encoder.patch_embed").requires_grad_(True)  # it is frozen, and random
    fill(method.double())
    stem.requires_grad_(False)
    method.key_encoder.load_state_dict(method.encoder.state_dict())
    method.key_head.load_state_dict(method.head.state_dict())
    return method, recipe


def two_views(step: int) -> Batch:
    return crops(step, 8, (1, IMAGE), (1, IMAGE))


def name_in_moco(theirs: str) -> str | None:
    network, _, rest = theirs.partition(".")
    if network == "predictor":
        return theirs
    prefix = {"base_encoder": "", "momentum_encoder": "key_"}[network]
    return f"{prefix}{rest}" if rest.startswith("head.") else f"{prefix}encoder.{rest}"


def theirs_moco(references: "References", setup: Setup, before: dict[str, Tensor]) -> dict[str, Tensor]:
    """main_moco.py with the arguments of CONFIG.md's ViT-Small.

    It averages the keys' networks at the beginning of a step: so it does once more after the last.
    """
    official = references.load("facebookresearch/moco-v3", "main_moco")
    per_epoch, epochs = setup.epoch, setup.total // setup.epoch
    settings = f"DIR -a vit_small -b 8 --optimizer=adamw --lr=1.5e-4 --weight-decay=.1 --epochs={epochs} "
    settings += "--warmup-epochs=40 --stop-grad-conv1 --moco-m-cos --moco-t=.2"
    args = official.parser.parse_args(settings.split())
    args.gpu, args.rank = None, 1  # which writes no summaries

    # it reads num_tokens, of the class, which its version of timm has
    vit: Any = type("Vit", (official.vits.VisionTransformerMoCo,), {"num_tokens": 1})
    network = partial(
        vit, stop_grad_conv1=args.stop_grad_conv1, img_size=IMAGE, patch_size=PATCH, embed_dim=48, depth=2,
        num_heads=12, mlp_ratio=4, qkv_bias=True, norm_layer=norm(),
    )  # fmt: skip
    model = official.moco.builder.MoCo_ViT(network, 8, 24, args.moco_t).double()
    turned_about = model.base_encoder.pos_embed.roll(24, dims=-1)  # its rows' half comes first
    assert torch.allclose(turned_about, before["encoder.pos_embed"], atol=1e-6)
    transplant(model, before, name_in_moco)
    args.lr = args.lr * args.batch_size / 256  # as main_worker does
    optimizer = torch.optim.AdamW(model.parameters(), args.lr, weight_decay=args.weight_decay)
    first = setup.first // per_epoch
    last = first + STEPS // per_epoch
    with on_cpu(mock.MagicMock()):
        scaler = torch.cuda.amp.GradScaler()
        for epoch in range(first, last):
            batches = [setup.batch(epoch * per_epoch + i) for i in range(per_epoch)]
            data = [([view[:, 0] for view in batch.views], None) for batch in batches]
            official.train(data, model, optimizer, scaler, None, epoch, args)
    with torch.no_grad():
        model._update_momentum_encoder(official.adjust_moco_momentum(last, args))
    after = collected(model.named_parameters(), name_in_moco)
    # frozen, and its average rounded
    return {name: x for name, x in after.items() if not name.startswith("key_encoder.patch_embed.")}


# ---------------------------------------------------------------- DeiT
def teacher() -> Trained:
    """A network that classifies, in fp64."""
    network = backbones.build(name="vit-s/16", image_size=IMAGE, channels=3, **NARROW)
    fill(network.double())
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(len(CLASSES), 16, generator=generator, dtype=torch.float64)
    bias = torch.zeros(len(CLASSES), dtype=torch.float64)
    extras = Extras({"classifier.weight": weight, "classifier.bias": bias}, {"classes": list(CLASSES)})
    return types.SimpleNamespace(encoder=network, preprocess=MEASURED, extras=extras)  # pyright: ignore


def make_deit() -> tuple[Method, Recipe]:
    recipe = narrowed(deit.paper(224, "deit-s/16"), 4, mixup=0.0, cutmix=0.0)
    context = Context(image_size=IMAGE, classes=CLASSES, model=teacher(), preprocess=MEASURED)
    method = deit.Method(encoder("deit-s/16", recipe, IMAGE, **NARROW), recipe.config, context)
    fill(method.double())
    return method, recipe


def labelled(step: int) -> Batch:
    batch = crops(step, 4, (3, IMAGE))
    return batch._replace(labels=torch.arange(4).add(step) % len(CLASSES))


def name_in_deit(theirs: str) -> str:
    part, _, rest = theirs.partition(".")
    known = {"head": "head", "head_dist": "distilled"}
    return f"{known[part]}.{rest}" if part in known else f"encoder.{theirs}"


def theirs_deit(references: "References", setup: Setup, before: dict[str, Tensor]) -> dict[str, Tensor]:
    """main.py with its arguments' defaults and the README's hard distillation."""
    official = references.load("facebookresearch/deit", "main")
    batch, per_epoch = 12, setup.images // 12  # of views
    settings = f"--batch-size {batch} --mixup 0 --cutmix 0 --distillation-type hard --epochs "
    args = official.get_args_parser().parse_args([*settings.split(), str(setup.total // per_epoch)])
    model = official.models.DistilledVisionTransformer(
        img_size=IMAGE, patch_size=PATCH, embed_dim=16, depth=2, num_heads=2, mlp_ratio=4, qkv_bias=True,
        norm_layer=norm(), num_classes=len(CLASSES),
    ).double()  # fmt: skip
    transplant(model, before, name_in_deit)
    model.no_weight_decay = lambda: {"pos_embed", "cls_token"}  # as in timm 0.3.2, which the README asks for
    args.lr = args.lr * args.batch_size * official.utils.get_world_size() / 512.0  # as main does
    optimizer = official.create_optimizer(args, model)
    scheduler, _ = official.create_scheduler(args, optimizer)
    taught: Any = setup.make()[0]

    class Teacher(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return taught.teacher_head(taught.teacher(images).pooled)

    criterion = official.DistillationLoss(
        official.LabelSmoothingCrossEntropy(smoothing=args.smoothing), Teacher(), args.distillation_type,
        args.distillation_alpha, args.distillation_tau,
    )  # fmt: skip
    first = setup.first // per_epoch
    if first:
        scheduler.step(first - 1)
    with on_cpu(official.utils):
        for epoch in range(first, first + STEPS // per_epoch):
            data = []
            for step in range(epoch * per_epoch, (epoch + 1) * per_epoch):
                given = setup.batch(step)
                assert given.labels is not None
                data.append((given.views[0].transpose(0, 1).flatten(0, 1), given.labels.repeat(3)))
            official.train_one_epoch(
                model, criterion, data, optimizer, torch.device("cpu"), epoch, official.NativeScaler(),
                args.clip_grad, None, None, set_training_mode=args.train_mode, args=args,
            )  # fmt: skip
            scheduler.step(epoch)
    return collected(model.named_parameters(), name_in_deit)


# ---------------------------------------------------------------- CLIP
def make_clip() -> tuple[Method, Recipe]:
    narrow = {"out": 8, "text_depth": 2, "text_dim": 16, "text_heads": 2, "context": WORDS}
    recipe = narrowed(clip.paper(224, "vit-b/32"), 8, **narrow)
    context = Context(image_size=IMAGE, tokenizer=text_tokenizer.Tokenizer(None, WORDS))
    method = clip.Method(encoder("vit-b/32", recipe, IMAGE, **NARROW), recipe.config, context)
    scale = method.logit_scale.detach().clone()
    fill(method.double())
    method.logit_scale.data.copy_(scale)
    return method, recipe


def captioned(step: int) -> Batch:
    batch = crops(step, 8, (1, IMAGE))
    generator = torch.Generator().manual_seed(step)
    text = torch.randint(1, 512, (8, WORDS), generator=generator)
    text[:, 0], text[:, 5], text[:, 6:] = END - 1, END, 0
    return batch._replace(text=text)


RENAMED = (
    (r"^(visual\.)?transformer\.resblocks", r"\1blocks"),
    (r"^token_embedding", "token_embed"), (r"class_embedding", "cls_token"),
    (r"positional_embedding", "pos_embed"), (r"conv1", "patch_embed.proj"), (r"ln_pre", "norm_pre"),
    (r"ln_(post|final)", "norm"), (r"ln_(\d)", r"norm\1"), (r"in_proj_", "qkv."), (r"out_proj", "proj"),
    (r"mlp\.c_fc", "mlp.fc1"), (r"mlp\.c_proj", "mlp.fc2"), (r"^text_projection", "projection.weight"),
)  # fmt: skip


def name_in_clip(theirs: str) -> str:
    if theirs in ("logit_scale", "visual.proj"):
        return {"visual.proj": "projection.weight"}.get(theirs, theirs)
    for old, new in RENAMED:
        theirs = re.sub(old, new, theirs)
    return theirs.replace("visual.", "encoder.", 1) if theirs.startswith("visual.") else f"text.{theirs}"


def turned(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The projections' matrices transposed."""
    return {n: x.T if n.endswith("projection.weight") else x for n, x in weights.items()}


def theirs_clip(references: "References", setup: Setup, before: dict[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's legacy training with the paper's numbers; its rule for the decay, line by line."""
    official = references.load("mlfoundations/open_clip", "open_clip_train.legacy_train", inside="src")
    cosine_lr = references.load(
        "mlfoundations/open_clip", "open_clip_train.scheduler", inside="src"
    ).cosine_lr
    loss = references.file("mlfoundations/open_clip", "src/open_clip/loss.py").ClipLoss()
    vision = {"layers": 2, "width": 16, "head_width": 8, "patch_size": PATCH, "image_size": IMAGE}
    words = {"context_length": WORDS, "vocab_size": END + 1, "width": 16, "heads": 2, "layers": 2}
    model = official.CLIP(8, vision, words, quick_gelu=True, output_dict=True).double()
    transplant(model, turned(before), name_in_clip)

    def exclude(n: str, p: Tensor) -> bool:
        return p.ndim < 2 or "bn" in n or "ln" in n or "bias" in n or "logit_scale" in n

    lr = setup.make()[1].lr  # it has no rule for another batch
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for n, p in named if exclude(n, p)], "weight_decay": 0.0},
            {"params": [p for n, p in named if not exclude(n, p)], "weight_decay": 0.2},
        ],
        lr=lr, betas=(0.9, 0.98), eps=1e-6,
    )  # fmt: skip
    scheduler = cosine_lr(optimizer, lr, 2000, setup.total)
    per_epoch = setup.images // 8
    args = types.SimpleNamespace(
        device="cpu", precision="fp32", distill=False, accum_freq=1, skip_scheduler=False, rank=1,
        log_local=False, grad_clip_norm=None, log_every_n_steps=100,
    )  # fmt: skip
    for epoch in range(setup.first // per_epoch, (setup.first + STEPS) // per_epoch):
        batches = [setup.batch(epoch * per_epoch + i) for i in range(per_epoch)]
        loader = Loader([{"image": b.views[0][:, 0], "text": b.text} for b in batches])
        data = {"train": types.SimpleNamespace(set_epoch=lambda epoch: None, dataloader=loader)}
        official.train_one_epoch(model, data, loss, epoch, optimizer, None, scheduler, None, args)
    return turned(collected(model.named_parameters(), name_in_clip))


class Loader(list[Any]):
    """Batches, with the attributes of open_clip's loaders."""

    num_samples = 8

    @property
    def num_batches(self) -> int:
        return len(self)


# ---------------------------------------------------------------- rows
Theirs = Callable[["References", Setup, dict[str, Tensor]], dict[str, Tensor]]


def rows(
    setup: Setup, later: int, what: str, source: str, part: str, theirs: Theirs, remark: str
) -> list[Whole]:
    """The run's start, and a window in the middle."""
    middle = setup._replace(name=f"{setup.name}-{later}", first=later)
    return [
        Whole(setup, f"{what}: the run's start", source, part, theirs, remark),
        Whole(middle, f"{what}, after the warm-up", source, part, theirs, "the same"),
    ]


ROWS = [
    *rows(
        Setup("moco", make_moco, two_views, images=16, total=600), 200, "MoCo v3, ViT-S",
        "facebookresearch/moco-v3", "main_moco.train, MoCo_ViT", theirs_moco,
        "the keys' networks after the average that it takes at the beginning of the next step; positions "
        "are ours: its fixed ones have the two halves of their channels exchanged",
    ),
    *rows(
        Setup("simclr", make_simclr, pairs, images=64, total=801), 400, "SimCLR",
        "google-research/simclr", "tf2/run.py: ProjectionHead, LARSOptimizer, WarmUpAndCosineDecay",
        theirs_simclr,
        "the encoder is our ViT on both sides, its norms named as batch norms; TensorFlow's functions by "
        "torch's; `single_step` line by line",
    ),
    *rows(
        Setup("deit", make_deit, labelled, images=24, total=600), 200, "DeiT, hard distillation",
        "facebookresearch/deit", "main.py, engine.train_one_epoch", theirs_deit,
        "without mixup and CutMix; the teacher is ours on both sides; positions and the class token "
        "excluded from decay as in timm 0.3.2",
    ),
    *rows(
        Setup("clip", make_clip, captioned, images=64, total=4000), 3000, "CLIP, ViT",
        "mlfoundations/open_clip", "legacy_train.train_one_epoch, CLIP, scheduler.cosine_lr", theirs_clip,
        "with the paper's numbers; no rule for another batch: the rate is ours",
    ),
]  # fmt: skip
SETUPS = [row.setup for row in ROWS]
