"""Whole steps of DINO, iBOT and DINOv2: our setups, and the published training code on the same weights."""

import contextlib
import dataclasses
import io
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from published.whole import STEPS, Setup, Whole, collected, crops, encoder, fill, transplant
from torch import Tensor, nn

from omma.core.protocols import Batch, Context, Method, Recipe
from omma.methods import dino

if TYPE_CHECKING:
    from published.references import References

IMAGE, PATCH, LOCALS, BATCH = 16, 4, 2, 4
NARROW: dict[str, Any] = {"dim": 16, "depth": 2, "heads": 2, "hidden": 64, "patch": PATCH}
HEAD = {"prototypes": 24, "head_hidden": 16, "head_bottleneck": 8, "local_crops": LOCALS}


def narrowed(recipe: Recipe, batch: int = BATCH, **options: Any) -> Recipe:
    """The recipe for a small batch and head, without stochastic depth."""
    config = dataclasses.replace(recipe.config, **options)
    return dataclasses.replace(recipe.for_batch(batch), config=config, drop_path=0.0)


def make_dino() -> tuple[Method, Recipe]:
    recipe = narrowed(dino.paper(224, "vit-s/16"), **HEAD)
    method = dino.Method(
        encoder("vit-s/16", recipe, IMAGE, **NARROW), recipe.config, Context(image_size=IMAGE)
    )
    return started(method, {"teacher": "encoder", "teacher_head": "head"}), recipe


@torch.no_grad()
def started(method: Method, teachers: Mapping[str, str]) -> Method:
    """The method in fp64, its weights from `fill` and its teachers' equal to them.

    Prototypes are short: their gradients are then long enough to be clipped.
    """
    fill(method.double())
    for module in method.children():
        if hasattr(module, "last") and module.last.weight.requires_grad:
            module.last.weight.mul_(0.02)
    for teacher, student in teachers.items():
        getattr(method, teacher).load_state_dict(getattr(method, student).state_dict())
    return method


def multi_crop(step: int) -> Batch:
    """Two global crops and local ones."""
    return crops(step, BATCH, (1, IMAGE), (1, IMAGE), (LOCALS, IMAGE))


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


def name_in(network: str, heads: str) -> Callable[[str], str | None]:
    """omma's name of a parameter of the published wrapper of a backbone and heads."""

    def name_of(theirs: str) -> str | None:
        part, _, rest = theirs.removeprefix("module.").partition(".")
        if part == "backbone":
            return f"{network}.{rest}"
        rest = re.sub(r"^last_layer\.weight_v$", "last.weight", rest)
        return None if rest == "last_layer.weight_g" else f"{heads}.{rest}"

    return name_of


def backbone(vit: Any, **options: Any) -> Any:
    """The published class, as narrow as ours."""
    return vit.VisionTransformer(
        patch_size=PATCH, embed_dim=NARROW["dim"], depth=NARROW["depth"], num_heads=NARROW["heads"],
        mlp_ratio=4, qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6), **options,
    )  # fmt: skip


def theirs_dino(references: "References", setup: Setup, before: dict[str, Tensor]) -> dict[str, Tensor]:
    """main_dino.py with the README's teacher temperature, 0.07 after 30 epochs."""
    official = references.load("facebookresearch/dino", "main_dino")
    utils, vit, per_epoch = official.utils, official.vits, setup.epoch
    epochs = setup.total // per_epoch
    args = arguments(official).parse_args(
        f"--teacher_temp 0.07 --warmup_teacher_temp_epochs 30 --epochs {epochs} --batch_size_per_gpu {BATCH} "
        f"--local_crops_number {LOCALS} --use_fp16 false".split()
    )
    names = name_in("encoder", "head"), name_in("teacher", "teacher_head")

    def network(norm_last_layer: bool, name_of: Callable[[str], str | None]) -> Any:
        head = official.DINOHead(16, 24, hidden_dim=16, bottleneck_dim=8, norm_last_layer=norm_last_layer)
        whole = utils.MultiCropWrapper(backbone(vit, img_size=[IMAGE]), head).double()
        transplant(whole, before, name_of)
        return whole

    student, teacher = network(args.norm_last_layer, names[0]), network(True, names[1])
    loss = official.DINOLoss(
        24, LOCALS + 2, args.warmup_teacher_temp, args.teacher_temp, args.warmup_teacher_temp_epochs, epochs
    ).double()
    optimizer = torch.optim.AdamW(utils.get_params_groups(student))
    rates = utils.cosine_scheduler(
        args.lr * BATCH / 256.0, args.min_lr, epochs, per_epoch, warmup_epochs=args.warmup_epochs
    )
    decays = utils.cosine_scheduler(args.weight_decay, args.weight_decay_end, epochs, per_epoch)
    momenta = utils.cosine_scheduler(args.momentum_teacher, 1, epochs, per_epoch)
    first = setup.first // per_epoch
    with on_cpu(utils):
        for epoch in range(first, first + STEPS // per_epoch):
            data = [(listed(setup.batch(epoch * per_epoch + i)), None) for i in range(per_epoch)]
            official.train_one_epoch(
                Alone(student), teacher, teacher, loss, data, optimizer, rates, decays, momenta, epoch, None,
                args,
            )  # fmt: skip
    return collected(student.named_parameters(), names[0]) | collected(teacher.named_parameters(), names[1])


DINO_CODE = ("facebookresearch/dino", "main_dino.train_one_epoch", theirs_dino)
DINO = Setup("dino", make_dino, multi_crop, images=2 * BATCH, total=200)

ROWS = [
    Whole(DINO, "DINO, ViT-S: the run's start", *DINO_CODE),
    Whole(DINO._replace(name="dino-50", first=50), "DINO, after the warm-up", *DINO_CODE),
]
SETUPS = [row.setup for row in ROWS]
