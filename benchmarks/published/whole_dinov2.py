"""Whole steps of DINOv2's two published ImageNet runs: our setups, and the published training code."""

import contextlib
import dataclasses
import os
import types
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from unittest import mock

import torch
import torch.nn.functional as F
import yaml
from published.whole import STEPS, Setup, Whole, collected, encoder, transplant
from published.whole_distilled import (
    BATCH,
    HEAD,
    IMAGE,
    LOCAL,
    LOCALS,
    NARROW,
    PATCH,
    both,
    multi_crop,
    narrowed,
    started,
)
from torch import Tensor, nn

from omma import backbones
from omma.core.protocols import Context, Method, Recipe
from omma.core.random import derive
from omma.methods import dinov2
from omma.methods.shared.masking import view_masks

if TYPE_CHECKING:
    from published.references import References

TEACHERS = {"teacher": "encoder", "teacher_head": "head", "teacher_patch_head": "patch_head"}


def make(model: str, short: bool) -> tuple[Method, Recipe]:
    """Heads of 12 and 8 dimensions where the published ones have 384 and 256."""
    recipe = dinov2.paper(224, model)
    config = dataclasses.replace(recipe.config, short=short)
    recipe = dinov2.adapted(dataclasses.replace(recipe, config=config), backbones.options(model))
    names = ("head_bottleneck", "patch_head_bottleneck")
    widths = {name: {384: 12, 256: 8, None: None}[getattr(recipe.config, name)] for name in names}
    recipe = narrowed(recipe, **HEAD | widths)
    hidden = NARROW["hidden"] if short else dinov2.swiglu_width(NARROW["hidden"])
    net = encoder(model, recipe, IMAGE, **NARROW | {"hidden": hidden})
    method = dinov2.Method(net, recipe.config, Context(image_size=IMAGE))
    untied = None if method.patch_head is None else "patch_head"
    return started(method, {t: s for t, s in TEACHERS.items() if untied or s != "patch_head"}), recipe


# ---------------------------------------------------------------- what its code needs and a CPU lacks
class Sequences:
    """Sequences of several lengths side by side, as xformers' BlockDiagonalMask describes them."""

    _batch_sizes: Sequence[int] | None = None  # set by the published code

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = list(lengths)

    @classmethod
    def from_seqlens(cls, lengths: Sequence[int]) -> "Sequences":
        return cls(lengths)

    @classmethod
    def from_tensor_list(cls, tensors: Sequence[Tensor]) -> tuple["Sequences", Tensor]:
        return cls([t.shape[1] for t in tensors]), torch.cat(list(tensors), dim=1)

    def split(self, x: Tensor) -> list[Tensor]:
        sequences = iter(x.split(self.lengths, dim=1))
        sizes = self._batch_sizes or [1] * len(self.lengths)
        return [torch.cat([next(sequences) for _ in range(size)]) for size in sizes]


def attention(q: Tensor, k: Tensor, v: Tensor, attn_bias: Sequences | None = None) -> Tensor:
    """memory_efficient_attention: within each sequence."""
    if attn_bias is None:
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    parts = zip(*(t.split(attn_bias.lengths, dim=1) for t in (q, k, v)), strict=True)
    return torch.cat([attention(*part) for part in parts], dim=1)


def select(tensors: Sequence[Tensor], indices: Sequence[Tensor]) -> Tensor:
    return torch.cat([t[index].flatten() for t, index in zip(tensors, indices, strict=True)])


def add(x: Tensor, index: Tensor, source: Tensor, scaling: Tensor, alpha: float) -> Tensor:
    return x.index_add(0, index, source * scaling, alpha=alpha)


class Checkpoints:
    """FSDPCheckpointer, where a run goes on from a step."""

    first = 0

    def __init__(self, *args: Any, **options: Any) -> None:
        pass

    def resume_or_load(self, *args: Any, **options: Any) -> dict[str, int]:
        return {"iteration": self.first - 1}


class Meters:
    """MetricLogger, which logs nothing."""

    meters: ClassVar[dict[str, Any]] = {}

    def __init__(self, *args: Any, **options: Any) -> None:
        pass

    def log_every(self, loader: Iterable[Any], *args: Any) -> Iterable[Any]:
        return loader

    def update(self, **values: Any) -> None:
        pass

    def synchronize_between_processes(self) -> None:
        pass


def stand_ins() -> dict[str, Any]:
    def module(name: str, **members: Any) -> types.ModuleType:
        made = types.ModuleType(name)
        made.__dict__.update(members)
        return made

    ops = module(
        "xformers.ops", fmha=types.SimpleNamespace(BlockDiagonalMask=Sequences), unbind=torch.unbind,
        memory_efficient_attention=attention, scaled_index_add=add, index_select_cat=select,
    )  # fmt: skip
    fsdp = module(
        "dinov2.fsdp", get_fsdp_wrapper=None, ShardedGradScaler=None, FSDPCheckpointer=Checkpoints,
        get_fsdp_modules=lambda m: [types.SimpleNamespace(params=list(m.parameters()))],
        reshard_fsdp_model=lambda m: None,
    )  # fmt: skip
    names = ("omegaconf", "fvcore", "fvcore.common", "fvcore.common.checkpoint", "dinov2.data")
    return {
        **{name: mock.MagicMock() for name in names},
        "dinov2.fsdp": fsdp, "xformers": module("xformers", ops=ops), "xformers.ops": ops,
    }  # fmt: skip


@contextlib.contextmanager
def with_xformers() -> Iterator[None]:
    others = {name: value for name, value in os.environ.items() if name != "XFORMERS_DISABLED"}
    with mock.patch.dict(os.environ, others, clear=True):
        yield


# ---------------------------------------------------------------- the published code
class Settings(dict[str, Any]):
    """A configuration whose entries are attributes, too."""

    __getattr__ = dict.__getitem__
    __setattr__ = dict.__setitem__  # pyright: ignore[reportAssignmentType]


def merged(base: Any, over: Any) -> Any:
    """Nested settings, those of `over` instead of those of `base`."""
    if not isinstance(base, dict):
        return over
    keys = [*base, *(key for key in over if key not in base)]
    return Settings({key: merged(base.get(key), over.get(key, base.get(key))) for key in keys})


def settings(folder: Path, file: str, short: bool) -> Any:
    """The published configuration of a run, narrow."""
    configs = folder / "dinov2" / "configs"
    read = [yaml.safe_load((configs / name).read_text()) for name in ("ssl_default_config.yaml", file)]
    heads = {"head_n_prototypes": 24, "head_hidden_dim": 16}
    narrow = {
        "dino": {**heads, "head_bottleneck_dim": 8 if short else 12},
        "ibot": {**heads, "head_bottleneck_dim": 8},
        "train": {"batch_size_per_gpu": BATCH},
        "student": {
            "arch": "vit_narrow",
            "patch_size": PATCH,
            "block_chunks": NARROW["depth"],
        },
        "crops": {"global_crops_size": IMAGE, "local_crops_size": LOCAL, "local_crops_number": LOCALS},
        "compute_precision": {"grad_scaler": False},
    }
    return merged(merged(*read), narrow)


def theirs(
    file: str, short: bool, references: "References", setup: Setup, before: dict[str, Tensor]
) -> dict[str, Tensor]:
    """dinov2.train.train.do_train with the configuration of a run; data and checkpoints are replaced."""
    source = "facebookresearch/dinov2"
    with with_xformers():
        train = references.load(
            source, "dinov2.train.train", real=("dinov2.train.train",), instead=stand_ins()
        )
    folder = references.path(source)
    assert folder is not None
    cfg = settings(folder, file, short)
    ours = setup.make()[1].config
    vits = train.SSLMetaArch.__init__.__globals__["build_model_from_cfg"].__globals__["vits"]
    vits.vit_narrow = partial(
        vits.DinoVisionTransformer, embed_dim=NARROW["dim"], depth=NARROW["depth"], num_heads=NARROW["heads"],
        mlp_ratio=4, block_fn=partial(vits.Block, attn_class=vits.MemEffAttention),
    )  # fmt: skip
    train.setup.__globals__["apply_scaling_rules_to_cfg"](cfg)
    model = train.SSLMetaArch(cfg).double()
    model.need_to_synchronize_fsdp_streams = False
    heads = {"dino_head": "head"} if short else {"dino_head": "head", "ibot_head": "patch_head"}
    of = both(before, **heads)
    for network, name_of in ((model.student, of[0]), (model.teacher, of[1])):
        transplant(network, before, name_of)
    for part in model.student.values():  # as FSDP's, on one process
        part.clip_grad_norm_ = partial(clip, part)

    def data() -> Iterator[dict[str, Any]]:
        for step in range(setup.first, setup.first + STEPS):
            images = collated(setup, ours, step)
            torch.manual_seed(derive(0, step, 0))  # stochastic depth draws from it as ours does
            yield images

    Checkpoints.first, single = setup.first, Tensor.float
    with (
        mock.patch.object(train, "make_data_loader", return_value=data()),
        mock.patch.object(train, "MetricLogger", Meters),
        mock.patch.object(Tensor, "float", lambda x: x if x.dtype == torch.float64 else single(x)),
    ):
        train.do_train(cfg, model)
    return collected(model.student.named_parameters(), of[0]) | collected(
        model.teacher.named_parameters(), of[1]
    )


def clip(part: nn.Module, most: float) -> Tensor:
    return torch.nn.utils.clip_grad_norm_(part.parameters(), most)


def collated(setup: Setup, config: Any, step: int) -> dict[str, Any]:
    """A batch as collate_data_and_cast returns it, in fp64, with our masks."""
    batch, grid = setup.batch(step), (IMAGE // PATCH, IMAGE // PATCH)
    mask = view_masks(batch.key, 2, grid, config.mask_probability, config.mask_share, 1)
    first, second, local = (view.transpose(0, 1).flatten(0, 1) for view in batch.views)
    at = mask.flatten().nonzero()[:, 0]
    weights = (1 / mask.sum(1).clamp(min=1.0).double())[:, None].expand_as(mask)[mask]
    return {
        "collated_global_crops": torch.cat([first, second]), "collated_local_crops": local,
        "collated_masks": mask, "mask_indices_list": at, "masks_weight": weights, "upperbound": len(at) + 2,
        "n_masked_patches": torch.full((1,), len(at)),
    }  # fmt: skip


REMARK = "masks are ours, and stochastic depth has the same random numbers"
LONG = Setup("dinov2", partial(make, "dinov2-l/14", False), multi_crop, images=10 * BATCH, total=625_000)
SHORT = LONG._replace(name="dinov2-short", make=partial(make, "vit-l/16", True), total=125_000)


def rows(setup: Setup, what: str, file: str, later: int) -> list[Whole]:
    """The run's start, the end of its first epoch of 1,250 steps, and a step after the warm-ups."""
    code = partial(theirs, f"train/{file}.yaml", "short" in file)
    source = ("facebookresearch/dinov2", f"do_train, {file}.yaml", code, REMARK)
    moving = setup._replace(name=f"{setup.name}-1242", first=1242)
    warm = setup._replace(name=f"{setup.name}-{later}k", first=1000 * later)
    return [
        Whole(setup, f"{what}: the run's start", *source),
        Whole(moving, f"{what}: where prototypes begin to move", *source),
        Whole(warm, f"{what}, after the warm-ups", *source),
    ]


ROWS = [
    *rows(LONG, "DINOv2, ViT-L/14", "vitl14", 300),
    *rows(SHORT, "DINOv2, ViT-L/16, the short run", "vitl16_short", 61),
]
SETUPS = [row.setup for row in ROWS]
