"""Whole steps of DINO, iBOT and DINOv2: our setups, and the published training code on the same weights."""

import contextlib
import dataclasses
import io
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import torch
from published.whole import STEPS, Setup, Whole, collected, crops, encoder, fill, transplant
from torch import Tensor, nn

from omma.core.protocols import Batch, Context, Method, Recipe
from omma.core.random import derive
from omma.methods import dino, ibot
from omma.methods.shared.masking import view_masks
from omma.ops.depth import chosen

if TYPE_CHECKING:
    from published.references import References

IMAGE, PATCH, LOCAL, LOCALS, BATCH = 16, 4, 8, 2, 4
NARROW: dict[str, Any] = {"dim": 16, "depth": 2, "heads": 2, "hidden": 64, "patch": PATCH}
HEAD = {"prototypes": 24, "head_hidden": 16, "head_bottleneck": 8, "local_crops": LOCALS}


def narrowed(recipe: Recipe, batch: int = BATCH, **options: Any) -> Recipe:
    """The recipe for a small batch and head."""
    config = dataclasses.replace(recipe.config, **options)
    return dataclasses.replace(recipe.for_batch(batch), config=config)


def make(file: Any) -> tuple[Method, Recipe]:
    recipe = narrowed(file.paper(224, "vit-s/16"), **HEAD)
    method = file.Method(
        encoder("vit-s/16", recipe, IMAGE, **NARROW), recipe.config, Context(image_size=IMAGE)
    )
    return started(method, {"teacher": "encoder", "teacher_head": "head"}), recipe


@torch.no_grad()
def started(method: Method, teachers: Mapping[str, str]) -> Method:
    """The method in fp64, its weights from `fill` and its teachers' equal to them.

    Prototypes are short: their gradients are then long enough to be clipped. Their gains are about 1.
    """
    fill(method.double())
    for name, p in method.named_parameters():
        if name.endswith("last.weight"):
            p.mul_(0.02)
        if name.endswith("last.gain"):
            p.mul_(0.1).add_(1)
    for teacher, student in teachers.items():
        getattr(method, teacher).load_state_dict(getattr(method, student).state_dict())
    return method


def multi_crop(step: int) -> Batch:
    """Two global crops and local ones."""
    return crops(step, BATCH, (1, IMAGE), (1, IMAGE), (LOCALS, LOCAL))


def listed(batch: Batch) -> list[Tensor]:
    """Each crop on its own, as the published loaders give them."""
    return [view[:, i] for view in batch.views for i in range(view.shape[1])]


@contextlib.contextmanager
def on_cpu(utils: Any) -> Iterator[None]:
    """Let a published training loop run here, silently: its meters are not synchronized, nothing waits."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        mock.patch.object(torch.cuda, "synchronize"),
        mock.patch.object(utils.MetricLogger, "synchronize_between_processes"),
    ):
        yield


def arguments(official: Any) -> Any:
    """The parser of a training script, which wants to ask GitHub for names of more networks."""
    with mock.patch.object(torch.hub, "list", return_value=[]):
        return official.get_args_parser()


class Alone(nn.Module):
    """The interface of a network that DistributedDataParallel has wrapped, for one process."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **options: Any) -> Any:
        return self.module(*args, **options)


Names = Callable[[str], str | None]


def names(known: Collection[str], **parts: str) -> Names:
    """omma's name of a parameter of the published code; parts: omma's names of its sub-modules.

    None for a parameter that omma has not: the prototypes' gain where it is fixed, the teacher's mask token.
    """

    def name_of(theirs: str) -> str | None:
        part, _, rest = theirs.partition(".")
        for pattern, ours in (
            (r"^last_layer\.weight_v$", "last.weight"),
            (r"^last_layer\.weight_g$", "last.gain"),
            (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),  # chunks of blocks
            (r"\.w12\.", ".fc1."),
            (r"\.w3\.", ".fc2."),
        ):
            rest = re.sub(pattern, ours, rest)
        masks = rest in ("masked_embed", "mask_token")
        name = "mask_token" if masks and parts[part] == "encoder" else f"{parts[part]}.{rest}"
        return name if name in known else None

    return name_of


def both(known: Collection[str], **heads: str) -> tuple[Names, Names]:
    """`names` in the student and in the teacher."""
    teachers = {part: f"teacher_{name}" for part, name in heads.items()}
    return names(known, backbone="encoder", **heads), names(known, backbone="teacher", **teachers)


def backbone(vit: Any, **options: Any) -> Any:
    """The published class, as narrow as ours."""
    return vit.VisionTransformer(
        img_size=[IMAGE], patch_size=PATCH, embed_dim=NARROW["dim"], depth=NARROW["depth"],
        num_heads=NARROW["heads"], mlp_ratio=4, qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6),
        **options,
    )  # fmt: skip


class Depth:
    """The published code's stochastic depth, with what omma's drops in the same step.

    omma draws layer after layer for the global and the local crops; they pass the published network one after
    the other.
    """

    def __init__(self, rate: float) -> None:
        self.rates = [r for r in np.linspace(0, rate, NARROW["depth"]).tolist() if r > 0]
        self.draws: list[tuple[Tensor, float]] = []

    def begin(self, step: int) -> None:
        torch.manual_seed(derive(0, step, 0))
        sizes = (2 * BATCH, LOCALS * BATCH)
        drawn = [
            [chosen(b, rate, torch.device("cpu")) for b in sizes] for rate in self.rates for _ in range(2)
        ]
        self.draws += [branch[group] for group in range(2) for branch in drawn]

    def __call__(self, x: Tensor, rate: float, training: bool) -> Tensor:
        if rate == 0 or not training:
            return x
        rows, factor = self.draws.pop(0)
        factors = x.new_zeros(len(x)).index_fill(0, rows, factor)
        return x * factors[:, None, None]


def driven(
    official: Any,
    vits: Any,
    setup: Setup,
    args: Any,
    loss: Any,
    student: Any,
    teacher: Any,
    data: Callable[[int], Any],
) -> None:
    """Sixteen steps as the scripts of DINO and iBOT make them: main's preparation, and train_one_epoch."""
    depth = Depth(setup.make()[1].drop_path)
    utils, per_epoch = official.utils, setup.epoch
    optimizer = torch.optim.AdamW(utils.get_params_groups(student))
    rates = utils.cosine_scheduler(
        args.lr * BATCH / 256.0, args.min_lr, args.epochs, per_epoch, warmup_epochs=args.warmup_epochs
    )
    decays = utils.cosine_scheduler(args.weight_decay, args.weight_decay_end, args.epochs, per_epoch)
    momenta = utils.cosine_scheduler(args.momentum_teacher, 1, args.epochs, per_epoch)
    first = setup.first // per_epoch
    with on_cpu(utils), mock.patch.object(vits, "drop_path", depth):
        for epoch in range(first, first + STEPS // per_epoch):
            steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
            loader = [data(step) for step in steps]
            for step in steps:
                depth.begin(step)
            official.train_one_epoch(
                Alone(student), teacher, teacher, loss, loader, optimizer, rates, decays, momenta, epoch,
                None, args,
            )  # fmt: skip
    assert not depth.draws


def theirs_dino(references: "References", setup: Setup, before: dict[str, Tensor]) -> dict[str, Tensor]:
    """main_dino.py with the options of the README's command for the better ViT-S."""
    official = references.load("facebookresearch/dino", "main_dino")
    args = arguments(official).parse_args(
        f"--teacher_temp 0.07 --warmup_teacher_temp_epochs 30 --epochs {setup.total // setup.epoch} "
        f"--batch_size_per_gpu {BATCH} --local_crops_number {LOCALS} --use_fp16 false "
        "--norm_last_layer false".split()
    )
    of = both(before, head="head")

    def network(norm_last_layer: bool, drop: float, name_of: Names) -> Any:
        head = official.DINOHead(16, 24, hidden_dim=16, bottleneck_dim=8, norm_last_layer=norm_last_layer)
        vit = backbone(official.vits, drop_path_rate=drop)
        whole = official.utils.MultiCropWrapper(vit, head).double()
        transplant(whole, before, name_of)
        return whole

    student = network(args.norm_last_layer, args.drop_path_rate, of[0])
    teacher = network(True, 0.0, of[1]).requires_grad_(False)
    loss = official.DINOLoss(
        24, LOCALS + 2, args.warmup_teacher_temp, args.teacher_temp, args.warmup_teacher_temp_epochs,
        args.epochs,
    )  # fmt: skip

    def data(step: int) -> Any:
        return listed(setup.batch(step)), None

    driven(official, official.vits, setup, args, loss.double(), student, teacher, data)
    return collected(student.named_parameters(), of[0]) | collected(teacher.named_parameters(), of[1])


def theirs_ibot(references: "References", setup: Setup, before: dict[str, Tensor]) -> dict[str, Tensor]:
    """main_ibot.py with the README's options for ViT-S/16."""
    official = references.load("bytedance/ibot", "main_ibot")
    args = arguments(official).parse_args(
        "--teacher_temp 0.07 --warmup_teacher_temp_epochs 30 --norm_last_layer false --shared_head true "
        f"--out_dim 24 --epochs {setup.total // setup.epoch} --batch_size_per_gpu {BATCH} "
        f"--local_crops_number {LOCALS} --use_fp16 false".split()
    )
    of, vits = both(before, head="head"), official.models.vision_transformer
    config = setup.make()[1].config

    def network(norm_last_layer: bool, name_of: Names, **options: Any) -> Any:
        vit = backbone(vits, return_all_tokens=True, **options)
        head = official.iBOTHead(
            16, 24, patch_out_dim=24, norm_last_layer=norm_last_layer, shared_head=True, hidden_dim=16,
            bottleneck_dim=8,
        )  # fmt: skip
        whole = official.utils.MultiCropWrapper(vit, head).double()
        transplant(whole, before, name_of)
        return whole

    student = network(args.norm_last_layer, of[0], masked_im_modeling=True, drop_path_rate=args.drop_path)
    teacher = network(True, of[1]).requires_grad_(False)
    loss = official.iBOTLoss(
        24, 24, 2, LOCALS, args.warmup_teacher_temp, args.teacher_temp, args.warmup_teacher_patch_temp,
        args.teacher_patch_temp, args.warmup_teacher_temp_epochs, args.epochs,
    )  # fmt: skip

    def data(step: int) -> Any:
        batch, grid = setup.batch(step), (IMAGE // PATCH, IMAGE // PATCH)
        mask = view_masks(batch.key, 2, grid, config.mask_probability, config.mask_share, 1)
        return listed(batch), torch.zeros(BATCH), [m.unflatten(1, grid) for m in mask.chunk(2)]

    with mock.patch.object(official, "eval_pred", return_value=(0, 0, 0, 0)):  # of labels, to print
        driven(official, vits, setup, args, loss.double(), student, teacher, data)
    return collected(student.named_parameters(), of[0]) | collected(teacher.named_parameters(), of[1])


DINO = Setup("dino", partial(make, dino), multi_crop, images=2 * BATCH, total=200)
IBOT = DINO._replace(name="ibot", make=partial(make, ibot))
DINO_CODE = ("facebookresearch/dino", "main_dino.train_one_epoch", theirs_dino)
IBOT_CODE = ("bytedance/ibot", "main_ibot.train_one_epoch", theirs_ibot)
DEPTH = "stochastic depth drops what it drops in ours"

ROWS = [
    Whole(DINO, "DINO, ViT-S: the run's start", *DINO_CODE, DEPTH),
    Whole(DINO._replace(name="dino-50", first=50), "DINO, after the warm-up", *DINO_CODE, DEPTH),
    Whole(IBOT, "iBOT, ViT-S: the run's start", *IBOT_CODE, f"masks, too; {DEPTH}"),
    Whole(IBOT._replace(name="ibot-50", first=50), "iBOT, after the warm-up", *IBOT_CODE, "the same"),
]
SETUPS = [row.setup for row in ROWS]
