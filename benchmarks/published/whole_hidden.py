"""Whole steps of MAE and SimMIM: omma's setups, and the published training code.

Masks and what stochastic depth drops are omma's on both sides.
"""

import argparse
import contextlib
import dataclasses
import io
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from published.whole import STEPS, Setup, Whole, collected, crops, encoder, fill, transplant
from torch import Tensor, nn

from omma.core.protocols import Batch, Context, Method, Recipe
from omma.core.random import Stream, derive
from omma.methods import mae, simmim
from omma.methods.shared.masking import random_keep, random_units
from omma.ops.depth import chosen

if TYPE_CHECKING:
    from published.references import References

IMAGE, PATCH, BATCH, DIM = 16, 4, 4, 16
GRID = (IMAGE // PATCH, IMAGE // PATCH)
NARROW: dict[str, Any] = {"dim": DIM, "depth": 2, "heads": 2, "hidden": 64}
SWIN = {"dim": 8, "depths": (2, 2), "heads": (1, 2), "window": 4, "token_patch": 2}
Weights = dict[str, Tensor]


def narrowed(recipe: Recipe, **options: Any) -> Recipe:
    """The recipe for a small batch and network."""
    config = dataclasses.replace(recipe.config, **options)
    return dataclasses.replace(recipe.for_batch(BATCH), config=config)


def filled(method: Method) -> Method:
    """In fp64, its weights from `fill`."""
    fill(method.double())
    return method


def one_crop(step: int) -> Batch:
    return crops(step, BATCH, (1, IMAGE))


# ---------------------------------------------------------------- omma's side
def make_mae() -> tuple[Method, Recipe]:
    recipe = narrowed(mae.paper(224, "vit-l/16"), decoder_depth=1, decoder_dim=8, decoder_heads=2)
    network = encoder("vit/4", recipe, IMAGE, **NARROW)
    return filled(mae.Method(network, recipe.config, Context(image_size=IMAGE))), recipe


def make_simmim(swin: bool) -> tuple[Method, Recipe]:
    method: Any
    model = "swin-b" if swin else "beit-b/16"
    recipe = narrowed(simmim.paper(192 if swin else 224, model), unit=PATCH)
    network = encoder(model, recipe, IMAGE, **(SWIN if swin else NARROW | {"patch": PATCH}))
    method = filled(simmim.Method(network, recipe.config, Context(image_size=IMAGE)))
    method.predict.weight.data.mul_(5)  # else no gradient is long enough to be clipped
    return method, recipe


# ---------------------------------------------------------------- the published code's
@contextlib.contextmanager
def on_cpu(utils: Any) -> Iterator[None]:
    """Let a published training loop run here, silently, and in fp64 where it casts to fp32."""
    single = torch.Tensor.float
    with (
        contextlib.redirect_stdout(io.StringIO()),
        mock.patch.object(torch.cuda, "synchronize"),
        mock.patch.object(torch.cuda, "max_memory_allocated", return_value=0),
        mock.patch.object(torch.Tensor, "float", lambda x: x if x.dtype == torch.float64 else single(x)),
        mock.patch.object(utils, "is_dist_avail_and_initialized", return_value=False, create=True),
    ):
        yield


class Seeded(list[Any]):
    """An epoch's data; each step begins with the seed that omma's loop has there."""

    first: int

    def __iter__(self) -> Iterator[Any]:
        for step, data in enumerate(super().__iter__(), start=self.first):
            torch.manual_seed(derive(0, step, 0))
            yield data


def epochs(setup: Setup, prepare: Callable[[Batch], Any]) -> Iterator[tuple[int, list[Any]]]:
    """Each epoch of the window, with its data as the published loop takes it."""
    for epoch in range(setup.first // setup.epoch, (setup.first + STEPS) // setup.epoch):
        first = epoch * setup.epoch
        data = Seeded(prepare(setup.batch(first + i)) for i in range(setup.epoch))
        data.first = first
        yield epoch, data


@contextlib.contextmanager
def same_drops(network: nn.Module) -> Iterator[None]:
    """Let the function by which a published network drops branches make omma's draws."""

    def drop_path(x: Tensor, rate: float = 0.0, training: bool = False, *_: Any) -> Tensor:
        if not training or rate == 0:
            return x
        rows, factor = chosen(len(x), rate, x.device)
        return x * x.new_zeros(len(x)).index_fill(0, rows, factor)[:, None, None]

    drops = {type(module) for module in network.modules() if type(module).__name__ == "DropPath"}
    with contextlib.ExitStack() as stack:
        for kind in drops:
            stack.enter_context(mock.patch.dict(kind.forward.__globals__, drop_path=drop_path))
        yield


def theirs_mae(references: "References", setup: Setup, before: Weights) -> Weights:
    """PRETRAIN.md's command."""
    with mock.patch("timm.__version__", "0.3.2"):
        official = references.load("facebookresearch/mae", "main_pretrain")
    args = official.get_args_parser().parse_args(
        f"--batch_size {BATCH} --norm_pix_loss --mask_ratio 0.75 --epochs 800 --warmup_epochs 40 "
        "--blr 1.5e-4 --weight_decay 0.05".split()
    )
    args.lr = args.blr * args.batch_size / 256
    network = official.models_mae.MaskedAutoencoderViT(
        IMAGE, PATCH, 3, DIM, 2, 2, 8, 1, 2, 4, partial(nn.LayerNorm, eps=1e-6),
        norm_pix_loss=args.norm_pix_loss,
    ).double()  # fmt: skip
    # the published predictor orders a patch row, column, channel; ours channel, row, column
    order = torch.arange(3 * PATCH**2).view(3, PATCH, PATCH).permute(1, 2, 0).flatten()

    def name_of(name: str) -> str | None:
        if name == "decoder_pos_embed":
            return None
        name = name.replace("decoder_pred", "decoder_predict")
        decoder = name.startswith("decoder_") or name == "mask_token"
        return f"decoder.{name.removeprefix('decoder_')}" if decoder else f"encoder.{name}"

    predictor = {name for name in before if name.startswith("decoder.predict.")}
    transplant(network, before | {name: before[name][order] for name in predictor}, name_of)
    groups = official.optim_factory.add_weight_decay(network, args.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95))
    scaler = official.NativeScaler()
    noise: list[Tensor] = []

    def prepare(batch: Batch) -> Any:
        keep = random_keep(batch.key, Stream.MASK, GRID[0] * GRID[1], args.mask_ratio)
        noise.append(torch.ones(BATCH, GRID[0] * GRID[1]).scatter(1, keep, 0.0))  # what is small is kept
        return batch.views[0][:, 0], None

    with on_cpu(official.misc), mock.patch.object(torch, "rand", side_effect=noise):
        for epoch, data in epochs(setup, prepare):
            official.train_one_epoch(network, data, optimizer, "cpu", epoch, scaler, args=args)
    after = collected(network.named_parameters(), name_of)
    back = order.argsort()
    return after | {name: after[name][back] for name in predictor}


def theirs_simmim(references: "References", setup: Setup, before: Weights, swin: bool) -> Weights:
    """The configuration files of 800 epochs; run as a script, main_simmim.py scales their rates."""
    official = references.load("microsoft/SimMIM", "main_simmim")
    folder = references.path("microsoft/SimMIM")
    assert folder is not None
    name = "swin_base__img192_window6__800ep" if swin else "vit_base__img224__800ep"
    file = folder / "configs" / ("swin_base__800ep" if swin else "vit_base__800ep")
    options = argparse.Namespace(
        cfg=str(file / f"simmim_pretrain__{name}.yaml"), opts=None, local_rank=0, batch_size=BATCH,
        amp_opt_level="O0",
    )  # fmt: skip
    config = official.get_config(options)
    for rate in ("BASE_LR", "WARMUP_LR", "MIN_LR"):
        config.TRAIN[rate] *= config.DATA.BATCH_SIZE / 512.0
    config.DATA.IMG_SIZE = IMAGE
    narrow = {"EMBED_DIM": DIM, "DEPTH": 2, "NUM_HEADS": 2, "PATCH_SIZE": PATCH}
    if swin:
        narrow = {"EMBED_DIM": 8, "DEPTHS": [2, 2], "NUM_HEADS": [1, 2], "WINDOW_SIZE": 4, "PATCH_SIZE": 2}
    config.MODEL[config.MODEL.TYPE.upper()].update(narrow)
    network = official.build_model(config, is_pretrain=True)
    stride = {"encoder_stride": PATCH}  # build_simmim has the published networks' own
    network = type(network)(network.encoder, **stride).double()

    def name_of(name: str) -> str | None:
        if name == "encoder.mask_token":
            return "mask_token"
        if ".downsample." in name:  # at the end of a stage; ours at the next one's beginning
            stage = int(name.split(".")[2])
            return name.replace(f"layers.{stage}.", f"layers.{stage + 1}.")
        return name.replace("decoder.0.", "predict.")

    transplant(network, before, name_of)
    optimizer = official.build_optimizer(config, network, mock.MagicMock(), is_pretrain=True)
    scheduler = official.build_scheduler(config, optimizer, setup.epoch)
    if setup.first:
        scheduler.step_update(setup.first - 1)
    unit = PATCH // (2 if swin else PATCH)  # tokens of a feature, along a side

    def prepare(batch: Batch) -> Any:
        mask = random_units(batch.key, Stream.MASK, GRID, 1, config.DATA.MASK_RATIO).unflatten(1, GRID)
        mask = mask.repeat_interleave(unit, 1).repeat_interleave(unit, 2)
        return batch.views[0][:, 0], mask.long(), None

    with (
        on_cpu(official),
        mock.patch.object(official, "logger", mock.MagicMock(), create=True),
        same_drops(network),
    ):
        for epoch, data in epochs(setup, prepare):
            official.train_one_epoch(config, network, data, optimizer, epoch, scheduler)
    return collected(network.named_parameters(), name_of)


# ---------------------------------------------------------------- the rows
def setup(name: str, make: Callable[[], tuple[Method, Recipe]], epoch: int, epochs: int) -> Setup:
    """epoch: steps of one."""
    return Setup(name, make, one_crop, images=epoch * BATCH, total=epoch * epochs)


def rows(
    at_start: Setup, first: int, what: str, later: str, source: str, part: str, theirs: Any, remark: str = ""
) -> list[Whole]:
    """Two windows: the run's start, and from `first`."""
    second = at_start._replace(name=f"{at_start.name}-{first}", first=first)
    return [
        Whole(at_start, f"{what}: the run's start", source, part, theirs, remark),
        Whole(second, f"{what}, {later}", source, part, theirs, remark),
    ]


ROWS = [
    *rows(
        setup("mae", make_mae, 2, 800), 72, "MAE", "about the end of the warm-up", "facebookresearch/mae",
        "engine_pretrain.train_one_epoch", theirs_mae,
    ),
    *rows(
        setup("simmim-vit", partial(make_simmim, swin=False), 1, 800), 692, "SimMIM, ViT",
        "about the rate's drop", "microsoft/SimMIM", "main_simmim.train_one_epoch",
        partial(theirs_simmim, swin=False),
    ),
    *rows(
        setup("simmim-swin", partial(make_simmim, swin=True), 1, 800), 692, "SimMIM, Swin",
        "about the rate's drop", "microsoft/SimMIM", "main_simmim.train_one_epoch",
        partial(theirs_simmim, swin=True),
    ),
]  # fmt: skip
SETUPS = [row.setup for row in ROWS]
