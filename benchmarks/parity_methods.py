"""Losses, gradients and state updates of omma's methods against the published code, on the same tensors.

    python benchmarks/parity_methods.py --references DIR [--rows dino koleo ...] [--write]

DIR holds a clone of each repository in SOURCES, named `owner+name` or `name`; what is missing is told, and
how to clone it. The published code is imported from there, on a CPU: `.cuda()` is the identity, one gloo
process stands for all, and libraries that only its training scripts want are replaced by empty ones. omma
computes in fp32, the published code in fp64; where both have weights, each trains its own for three steps of
gradient descent. --write puts the tables into docs/parity.md, between its markers; it wants all rows.
"""

import argparse
import contextlib
import copy
import importlib
import importlib.util
import math
import random
import subprocess
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import timm.layers
import timm.models.vision_transformer
import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn

from omma.backbones.eva import Eva
from omma.backbones.layers.block import Where
from omma.backbones.vit import ViT
from omma.heads import PrototypeHead
from omma.losses import classification, contrastive, distillation
from omma.losses.koleo import koleo
from omma.methods import beit, dino, dinov2, ibot, lejepa, mae, moco, simmim
from omma.ops import bpe, ema
from omma.ops.masking import blockwise, hide, random_units, view_masks
from omma.ops.sinkhorn import sinkhorn
from omma.protocols import Batch, Clock, Extras, Given, Key, Preprocess
from omma.weights import Model

DOCUMENT = Path(__file__).parent.parent / "docs" / "parity.md"
BEGIN, END = (f"<!-- benchmarks/parity_methods.py {word} -->" for word in ("begin", "end"))
SOURCES = {
    name: f"https://github.com/{name}"
    for name in (
        "facebookresearch/dino",
        "bytedance/ibot",
        "facebookresearch/dinov2",
        "facebookresearch/mae",
        "microsoft/SimMIM",
        "microsoft/unilm",
        "facebookresearch/moco-v3",
        "google-research/simclr",
        "rbalestr-lab/lejepa",
        "facebookresearch/deit",
        "openai/CLIP",
        "mlfoundations/open_clip",
    )
}
BOUND = 1e-5  # on every difference
STEPS, RATE = 3, 0.1
IMAGE, PATCH, LOCAL, IMAGES = 16, 4, 8, 4


# ---------------------------------------------------------------- references
class References:
    """Clones in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, source: str) -> Path | None:
        owner, name = source.split("/")
        tried = [self.folder / f"{owner}+{name}", self.folder / name]
        return next((path for path in tried if path.is_dir()), None)

    def commit(self, source: str) -> str:
        command = ["git", "-C", str(self.path(source)), "rev-parse", "--short=7", "HEAD"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout.strip() or "commit unknown"

    def file(self, source: str, path: str) -> Any:
        """One file of the clone as a module, without its package."""
        folder = self.path(source)
        assert folder is not None
        spec = importlib.util.spec_from_file_location("reference", folder / path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def load(self, source: str, module: str, inside: str = "") -> Any:
        """A module of the clone, or of a folder of it; nothing of it stays importable."""
        clone = self.path(source)
        assert clone is not None
        folder = clone / inside
        stand_ins = _stand_ins()
        before = {name: sys.modules[name] for name in stand_ins if name in sys.modules}
        sys.path.insert(0, str(folder))
        sys.modules.update(stand_ins)
        try:
            return importlib.import_module(module)
        finally:  # their `utils`, `models` and the like must not meet those of other clones
            sys.path.remove(str(folder))
            for name, found in list(sys.modules.items()):
                if name in stand_ins or any(str(folder) in place for place in _places(found)):
                    del sys.modules[name]
            sys.modules.update(before)


def _places(module: Any) -> list[str]:
    """Where a module lies: its file, or a namespace's folders."""
    file = getattr(module, "__file__", None)
    return [file] if isinstance(file, str) else [str(place) for place in getattr(module, "__path__", ())]


def _module(name: str, **members: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__dict__.update(members)
    return module


def _block(*args: Any, qk_scale: None = None, **options: Any) -> nn.Module:
    """timm's block, which once took an argument more."""
    return timm.models.vision_transformer.Block(*args, **options)


class _Sequences:
    """xformers' packing of sequences, which nothing looks across here: heads see each row by itself."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = lengths

    @classmethod
    def from_tensor_list(cls, tensors: list[Tensor]) -> tuple["_Sequences", Tensor]:
        return cls([t.shape[1] for t in tensors]), torch.cat(tensors, dim=1)

    def split(self, x: Tensor) -> list[Tensor]:
        return list(x.split(self.lengths, dim=1))


def _tensorflow() -> types.ModuleType:
    """What SimCLR's loss asks of TensorFlow."""

    def l2_normalize(x: Tensor, axis: int) -> Tensor:
        return x * x.square().sum(axis, keepdim=True).clamp(min=1e-12).rsqrt()

    def matmul(a: Tensor, b: Tensor, transpose_b: bool) -> Tensor:
        return a @ (b.T if transpose_b else b)

    def softmax_cross_entropy(labels: Tensor, logits: Tensor) -> Tensor:
        return -(labels * logits.log_softmax(-1)).sum(-1)

    return _module(
        "tensorflow.compat.v2",
        math=types.SimpleNamespace(l2_normalize=l2_normalize),
        nn=types.SimpleNamespace(softmax_cross_entropy_with_logits=softmax_cross_entropy),
        split=lambda x, parts, axis: x.chunk(parts, axis),
        shape=lambda x: x.shape,
        range=torch.arange,
        one_hot=lambda index, depth: F.one_hot(index, depth).double(),
        matmul=matmul,
        concat=torch.cat,
        reduce_mean=torch.mean,
    )


def _stand_ins() -> dict[str, types.ModuleType | mock.MagicMock]:
    """Modules that the clones import and these comparisons do not need, or that have moved since."""
    fsdp = _module(
        "dinov2.fsdp",
        get_fsdp_wrapper=None,
        ShardedGradScaler=None,
        get_fsdp_modules=lambda m: [types.SimpleNamespace(params=list(getattr(m, "net", m).parameters()))],
        reshard_fsdp_model=lambda m: None,
    )
    fmha = types.SimpleNamespace(BlockDiagonalMask=_Sequences)
    xformers_ops = _module("xformers.ops", fmha=fmha)
    compat = _module("tensorflow.compat", v2=_tensorflow())
    vision = timm.models.vision_transformer
    names = (
        "tensorboardX",
        "evaluation",
        "evaluation.unsupervised",
        "evaluation.unsupervised.unsup_cls",
        "absl",
        "clip.model",
        "clip.clip",
    )
    return {
        **{name: mock.MagicMock() for name in names},
        "timm.models.layers": _module("timm.models.layers", **vars(timm.layers)),
        "timm.models.registry": _module("timm.models.registry", register_model=lambda f: f),
        "timm.models.vision_transformer": _module(
            "timm.models.vision_transformer", **{**vars(vision), "Block": _block}
        ),
        "dinov2.fsdp": fsdp,
        "ftfy": _module("ftfy", fix_text=lambda text: text),
        "dinov2.train.train": _module("dinov2.train.train", get_args_parser=None, main=None),
        "data.data_finetune": _module("data.data_finetune", build_loader_finetune=None),
        "xformers": _module("xformers", ops=xformers_ops),
        "xformers.ops": xformers_ops,
        "tensorflow": _module("tensorflow", compat=compat),
        "tensorflow.compat": compat,
        "tensorflow.compat.v2": compat.v2,
    }


@contextlib.contextmanager
def on_this_machine() -> Iterator[None]:
    """Let code that was written for GPUs, processes and an older NumPy run on a CPU."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    patches = [
        mock.patch.object(torch.Tensor, "cuda", lambda x, *_, **__: x),
        mock.patch.object(nn.Module, "cuda", lambda m, *_, **__: m),
        mock.patch.object(np, "float", float, create=True),
        mock.patch.object(np, "int", int, create=True),
        mock.patch.dict("os.environ", XFORMERS_DISABLED="1"),
    ]
    try:
        with contextlib.ExitStack() as stack:
            for patch in patches:
                stack.enter_context(patch)
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")  # of what is deprecated in their code
            yield
    finally:
        torch.distributed.destroy_process_group()


# ---------------------------------------------------------------- comparing
class Found:
    """Largest absolute differences, of losses (and what leads to them), gradients and states."""

    def __init__(self) -> None:
        self.worst: dict[str, float] = {}

    def note(self, kind: str, ours: Any, theirs: Any) -> None:
        ours, theirs = (torch.as_tensor(x).detach().double() for x in (ours, theirs))
        assert ours.shape == theirs.shape, (kind, ours.shape, theirs.shape)
        worst = float((ours - theirs).abs().max()) if ours.numel() else 0.0
        assert math.isfinite(worst), kind
        self.worst[kind] = max(self.worst.get(kind, 0.0), worst)

    def gradients(self, ours: nn.Module, theirs: nn.Module) -> None:
        """Of two networks with the same parameters."""
        twins = dict(theirs.named_parameters())
        reached = 0
        for name, p in ours.named_parameters():
            if p.grad is None:
                assert twins[name].grad is None or not twins[name].grad.any(), name
                continue
            reached += bool(p.grad.any())
            self.note("gradient", p.grad, twins[name].grad)
        assert reached, "no gradient to compare"

    def states(self, ours: nn.Module, theirs: nn.Module) -> None:
        twins = theirs.state_dict()
        for name, value in ours.state_dict().items():
            self.note("state", value, twins[name])


def wave(*shape: int, phase: float = 0.0, scale: float = 1.0, step: float = 0.7) -> Tensor:
    """scale sin(step i + .37 i^2 + phase) for the i-th value, fp32: the tests' inputs."""
    i = torch.arange(int(np.prod(shape)), dtype=torch.float64)
    return (scale * torch.sin(step * i + 0.37 * i * i + phase)).reshape(shape).float()


def leaf(x: Tensor) -> tuple[Tensor, Tensor]:
    """The same numbers for us in fp32 and for them in fp64, each to be differentiated by."""
    return x.clone().requires_grad_(), x.double().requires_grad_()


def toy(**options: Any) -> ViT:
    """A small network with weights of every size but zero."""
    shape = {"depth": 2, "dim": 16, "heads": 2, "hidden": 64, "patch": PATCH, "image_size": IMAGE}
    return ViT("toy", **(shape | options))


def scatter(network: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for p in network.parameters():
        if p.requires_grad:
            scale = p.shape[-1] ** -0.5 if p.ndim > 1 else 0.1
            noise = torch.randn(p.shape, generator=generator) * scale
            p.data.copy_(noise + float(p.ndim == 1 and p.data.eq(1).all()))


def made(file: Any, config: Any, **options: Any) -> Any:
    """A method with toy weights, the average of which is a little behind."""
    torch.manual_seed(0)
    method = file.Method(toy(**options), config, Given(image_size=IMAGE))
    scatter(method)
    return method.train()


def batch(step: int, *plan: tuple[int, int], images: int = IMAGES) -> Batch:
    """Images of random numbers: (how many of each image, pixels)."""
    generator = torch.Generator().manual_seed(step)
    views = tuple(torch.randn(images, n, 3, size, size, generator=generator) for n, size in plan)
    return Batch(views, Key(0, np.full(images, step), np.arange(images)))


def double(views: tuple[Tensor, ...]) -> list[Tensor]:
    """Each kind of crop, one view of all images after another, for the published code."""
    return [view.transpose(0, 1).flatten(0, 1).double() for view in views]


@torch.no_grad()
def descend(*networks: nn.Module, rate: float = RATE) -> None:
    for network in networks:
        for p in network.parameters():
            if p.grad is not None:
                p -= rate * p.grad
                p.grad = None


def multi_crop(step: int) -> Batch:
    return batch(step, (1, IMAGE), (1, IMAGE), (3, LOCAL))


HEAD = {"prototypes": 24, "head_hidden": 16, "head_bottleneck": 8}
TEMPERATURES = {"teacher_temp_start": 0.04, "teacher_temp": 0.07, "teacher_temp_warmup": (STEPS - 1) / STEPS}


def temperature_at(step: int) -> float:
    return 0.04 + 0.03 * step / (STEPS - 1)


# ---------------------------------------------------------------- rows: add a function here and to ROWS
def dino_method(references: References, found: Found) -> None:
    official = references.load("facebookresearch/dino", "main_dino")
    method = made(dino, dino.Config(**HEAD, **TEMPERATURES))
    twin = copy.deepcopy(method).double()
    loss_of = official.DINOLoss(24, 5, 0.04, 0.07, STEPS, STEPS).double()
    for step in range(STEPS):
        data = multi_crop(step)
        ours = method(data, Clock(step, STEPS, 0.0))
        ours.loss.backward()
        first, second, local = double(data.views)
        globals_ = torch.cat([first, second])
        pooled = torch.cat([twin.encoder(globals_).pooled, twin.encoder(local).pooled])
        logits = twin.teacher_head(twin.teacher(globals_).pooled)
        theirs = loss_of(twin.head(pooled), logits, step)
        theirs.backward()
        found.note("loss", ours.loss, theirs)
        found.gradients(method, twin)
        descend(method, twin)
        method.after_step(Clock(step + 1, STEPS, 0.0), [ours.carry])
        for slow, fast in ((twin.teacher, twin.encoder), (twin.teacher_head, twin.head)):
            ema.update(slow, fast, dino.cosine(0.996, 1.0, (step + 1) / STEPS))
        found.note("state", method.centre, loss_of.center[0])


def head(references: References, found: Found) -> None:
    official = references.load("facebookresearch/dino", "vision_transformer")
    ours = PrototypeHead(16, 24, 32, 8)
    scatter(ours)
    theirs = official.DINOHead(16, 24, hidden_dim=32, bottleneck_dim=8).double()
    theirs.mlp.load_state_dict(ours.mlp.state_dict())
    theirs.last_layer.weight_v.data.copy_(ours.last.weight.data)
    x, twin = leaf(wave(5, 16))
    out, expected = ours(x), theirs(twin)
    found.note("loss", out, expected)
    (out * wave(5, 24, phase=1.0)).sum().backward()
    (expected * wave(5, 24, phase=1.0)).sum().backward()
    found.gradients(ours.mlp, theirs.mlp)
    found.note("gradient", ours.last.weight.grad, theirs.last_layer.weight_v.grad)
    found.note("gradient", x.grad, twin.grad)


def ibot_method(references: References, found: Found) -> None:
    official = references.load("bytedance/ibot", "main_ibot")
    method = made(ibot, ibot.Config(**HEAD, **TEMPERATURES, mask_probability=0.7))
    twin = copy.deepcopy(method).double()
    loss_of = official.iBOTLoss(24, 24, 2, 3, 0.04, 0.07, 0.04, 0.07, STEPS, STEPS).double()
    grid = (IMAGE // PATCH,) * 2
    for step in range(STEPS):
        data = multi_crop(step)
        with mock.patch.object(ibot, "view_masks", side_effect=view_masks) as drawn:
            ours = method(data, Clock(step, STEPS, 0.0))
        mask = view_masks(*drawn.call_args.args, **drawn.call_args.kwargs)
        assert mask.any()
        ours.loss.backward()
        first, second, local = double(data.views)
        globals_ = torch.cat([first, second])
        seen = twin.encoder.encode(*hide(twin.encoder, globals_, mask, twin.mask_token))
        whole = twin.teacher(globals_)
        theirs = loss_of(
            (twin.head(seen.pooled), twin.head(seen.patches)),
            (twin.teacher_head(whole.pooled), twin.teacher_head(whole.patches)),
            twin.head(twin.encoder(local).pooled),
            [m.unflatten(1, grid) for m in mask.chunk(2)],
            step,
        )
        theirs["loss"].backward()
        found.note("loss", ours.loss, theirs["loss"])
        found.note("loss", ours.metrics["patch_loss"], theirs["patch"])
        found.gradients(method, twin)
        descend(method, twin)
        method.after_step(Clock(step + 1, STEPS, 0.0), [ours.carry])
        for slow, fast in ((twin.teacher, twin.encoder), (twin.teacher_head, twin.head)):
            ema.update(slow, fast, ibot.cosine(0.996, 1.0, (step + 1) / STEPS))
        found.note("state", method.centre, loss_of.center[0])
        found.note("state", method.patch_centre, loss_of.center2[0, 0])


class DinoV2Backbone(nn.Module):
    """One of our encoders behind the interface that DINOv2's training code calls."""

    def __init__(self, net: ViT, mask_token: Tensor) -> None:
        super().__init__()
        self.net = net
        self.mask_token = [mask_token]  # in a list: no parameter of this module

    def forward(self, x: Any, masks: Any = None, is_training: bool = True) -> Any:
        assert is_training
        if isinstance(x, list):
            return [self(images, mask) for images, mask in zip(x, masks, strict=True)]
        seen = (
            self.net(x) if masks is None else self.net.encode(*hide(self.net, x, masks, self.mask_token[0]))
        )
        return {"x_norm_clstoken": seen.pooled, "x_norm_patchtokens": seen.patches}


def dinov2_method(references: References, found: Found, balanced: bool) -> None:
    official = references.load("facebookresearch/dinov2", "dinov2.train.ssl_meta_arch")
    centring = "sinkhorn" if balanced else "mean"
    config = dinov2.Config(**HEAD, **TEMPERATURES, centring=centring, untied=balanced, mask_probability=0.7)
    method = made(dinov2, config)
    twin = copy.deepcopy(method).double()
    arch = official.SSLMetaArch.__new__(official.SSLMetaArch)
    nn.Module.__init__(arch)
    arch.fp16_scaler, arch.need_to_synchronize_fsdp_streams = None, False
    arch.do_dino = arch.do_koleo = arch.do_ibot = True
    arch.dino_loss_weight = arch.ibot_loss_weight = 1.0
    arch.ibot_separate_head = balanced
    arch.cfg = types.SimpleNamespace(
        crops=types.SimpleNamespace(local_crops_number=3),
        dino=types.SimpleNamespace(koleo_loss_weight=0.1),
        train=types.SimpleNamespace(centering="sinkhorn_knopp" if balanced else "centering"),
    )
    arch.dino_loss = official.DINOLoss(24).double()
    arch.ibot_patch_loss = official.iBOTPatchLoss(24).double()
    arch.koleo_loss = official.KoLeoLoss().double()
    student, teacher = {"dino_head": twin.head}, {"dino_head": twin.teacher_head}
    if balanced:
        student["ibot_head"], teacher["ibot_head"] = twin.patch_head, twin.teacher_patch_head
    arch.student = nn.ModuleDict({"backbone": DinoV2Backbone(twin.encoder, twin.mask_token), **student})
    arch.teacher = nn.ModuleDict({"backbone": DinoV2Backbone(twin.teacher, twin.mask_token), **teacher})
    for step in range(STEPS):
        data = multi_crop(step)
        with mock.patch.object(dinov2, "view_masks", side_effect=view_masks) as drawn:
            ours = method(data, Clock(step, STEPS, 0.0))
        ours.loss.backward()
        mask = view_masks(*drawn.call_args.args, **drawn.call_args.kwargs)
        assert mask.any()
        first, second, local = double(data.views)
        at = mask.flatten().nonzero()[:, 0]
        counts = mask.sum(1).clamp(min=1.0)[:, None].expand_as(mask)[mask]
        images = {
            "collated_global_crops": torch.cat([first, second]),
            "collated_local_crops": local,
            "collated_masks": mask,
            "mask_indices_list": at,
            "masks_weight": (1 / counts).double(),
            "upperbound": len(at) + 2,
            "n_masked_patches": torch.full((1,), len(at)),
        }
        terms = arch.forward_backward(images, temperature_at(step))
        image_loss = terms["dino_local_crops_loss"] + terms["dino_global_crops_loss"]
        patch_loss, spread = 2 * terms["ibot_loss"], 2 * terms["koleo_loss"]
        found.note("loss", ours.loss, image_loss + patch_loss + spread)
        found.note("loss", ours.metrics["image_loss"], image_loss)
        found.note("loss", ours.metrics["patch_loss"], patch_loss)
        found.gradients(method, twin)
        descend(method, twin)
        method.after_step(Clock(step + 1, STEPS, 0.0), [ours.carry])
        arch.update_teacher(dinov2.cosine(config.momentum, 1.0, (step + 1) / STEPS))
        for name in ("teacher", "teacher_head", *(["teacher_patch_head"] if balanced else [])):
            found.states(getattr(method, name), getattr(twin, name))
        if not balanced:
            for loss in (arch.dino_loss, arch.ibot_patch_loss):
                loss.apply_center_update()
            found.note("state", method.centre, arch.dino_loss.center[0])
            found.note("state", method.patch_centre, arch.ibot_patch_loss.center.flatten())


def dinov2_sinkhorn(references: References, found: Found) -> None:
    official = references.load("facebookresearch/dinov2", "dinov2.loss")
    for n, k in ((6, 4), (37, 24), (8, 64)):
        for temperature in (0.04, 0.07):
            logits = wave(n, k, phase=n)
            ours = sinkhorn(logits, temperature)
            found.note("loss", ours, official.DINOLoss(k).sinkhorn_knopp_teacher(logits, temperature))
            count = torch.full((1,), n)
            theirs = official.iBOTPatchLoss(k).sinkhorn_knopp_teacher(logits, temperature, count)
            found.note("loss", ours, theirs)


def dinov2_koleo(references: References, found: Found) -> None:
    official = references.load("facebookresearch/dinov2", "dinov2.loss").KoLeoLoss()
    for rows in (2, 9, 32):
        x, twin = leaf(wave(rows, 16, phase=rows, scale=3.0))
        ours, theirs = koleo(x), official(twin)
        ours.backward()
        theirs.backward()
        found.note("loss", ours, theirs)
        found.note("gradient", x.grad, twin.grad)


def dinov2_patches(references: References, found: Found) -> None:
    official = references.load("facebookresearch/dinov2", "dinov2.loss").iBOTPatchLoss(24)
    mask = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]]).bool()  # nothing of one image is masked
    counts = mask.sum(1)[:, None].expand_as(mask)[mask].float()
    for step in range(STEPS):
        features, their_features = leaf(wave(4, 8, phase=step))
        prototypes, their_prototypes = leaf(wave(24, 8, phase=step + 0.3))
        teacher = wave(4, 24, phase=step + 0.6, scale=3.0).softmax(-1)
        ours = distillation.masked_patches(features, prototypes, teacher, counts, len(mask), 0.1)
        theirs = official.forward_masked(their_features @ their_prototypes.T, teacher.double(), mask)
        ours.backward()
        theirs.backward()
        found.note("loss", ours, theirs)
        found.note("gradient", features.grad, their_features.grad)
        found.note("gradient", prototypes.grad, their_prototypes.grad)


def dinov2_rates(references: References, found: Found) -> None:
    official = references.load("facebookresearch/dinov2", "dinov2.utils.param_groups")
    method = made(dinov2, dinov2.Config(**HEAD), depth=5, registers=2)
    names = {id(p): name for name, p in method.named_parameters()}
    for group in method.groups():
        for p in group.params:
            name = names[id(p)].replace("encoder.", "backbone.").replace("reg_token", "register_tokens")
            name = name.replace("mask_token", "backbone.mask_token")
            rate = official.get_vit_lr_decay_rate(name, 0.9, 5 if name.startswith("backbone") else 0)
            found.note("state", group.lr_scale, rate * (0.2 if "patch_embed" in name else 1.0))


def mae_method(references: References, found: Found, normalise: bool) -> None:
    official = references.load("facebookresearch/mae", "models_mae")
    config = mae.Config(decoder_depth=1, decoder_dim=8, decoder_heads=2, normalise_target=normalise)
    method = made(mae, config, positions="sincos")
    theirs = official.MaskedAutoencoderViT(
        IMAGE, PATCH, 3, 16, 2, 2, 8, 1, 2, 4, partial(nn.LayerNorm, eps=1e-6), norm_pix_loss=normalise
    ).double()
    # the published predictor orders a patch row, column, channel; ours channel, row, column
    order = torch.arange(3 * PATCH**2).view(PATCH, PATCH, 3).permute(2, 0, 1).flatten()

    def name_of(ours: str) -> str:
        if ours == "decoder.mask_token":
            return "mask_token"
        ours = ours.removeprefix("encoder.").replace("decoder.predict", "decoder_pred")
        return ours.replace("decoder.", "decoder_")

    twins = dict(theirs.named_parameters())
    pairs = [(name, p, twins[name_of(name)]) for name, p in method.named_parameters() if p.requires_grad]
    assert len(pairs) == sum(p.requires_grad for p in theirs.parameters())
    found.note("loss", method.encoder.pos_embed, theirs.pos_embed)
    with torch.no_grad():
        for name, p, q in pairs:
            q[order if "predict" in name else slice(None)] = p.double()
    for step in range(STEPS):
        data = batch(step, (1, IMAGE))
        with mock.patch.object(mae, "random_keep", side_effect=mae.random_keep) as drawn:
            ours = method(data, Clock(step, STEPS, 0.0))
        ours.loss.backward()
        keep = mae.random_keep(*drawn.call_args.args)
        noise = torch.ones(IMAGES, (IMAGE // PATCH) ** 2).scatter(1, keep, 0.0)
        with mock.patch.object(torch, "rand", return_value=noise):  # what is small is kept
            loss = theirs(*double(data.views), config.mask_share)[0]
        loss.backward()
        found.note("loss", ours.loss, loss)
        for name, p, q in pairs:
            found.note("gradient", p.grad, q.grad[order] if "predict" in name else q.grad)
        descend(method, theirs)


def simmim_method(references: References, found: Found) -> None:
    official = references.load("microsoft/SimMIM", "models.simmim")
    method = made(simmim, simmim.Config(unit=8))
    twin = copy.deepcopy(method).double()
    where = Where((IMAGE // PATCH,) * 2, twin.encoder.prefix)

    class Encoder(nn.Module):
        """Our network's parts, run by the published code."""

        num_features, in_chans, patch_size = 16, 3, PATCH
        pos_drop, rel_pos_bias = nn.Identity(), None
        forward = official.VisionTransformerForSimMIM.forward

        def __init__(self) -> None:
            super().__init__()
            net: Any = twin.encoder
            self.patch_embed, self.cls_token, self.pos_embed = net.patch_embed, net.cls_token, net.pos_embed
            self.norm, self.mask_token = net.norm, twin.mask_token
            self.blocks = [lambda x, rel_pos_bias, block=block: block(x, where) for block in net.blocks]

    theirs = official.SimMIM(Encoder(), PATCH).double()
    conv = theirs.decoder[0]
    with torch.no_grad():
        conv.weight.copy_(twin.predict.weight[:, :, None, None])
        conv.bias.copy_(twin.predict.bias)
    for step in range(STEPS):
        data = batch(step, (1, IMAGE))
        with mock.patch.object(simmim, "random_units", side_effect=random_units) as drawn:
            ours = method(data, Clock(step, STEPS, 0.0))
        ours.loss.backward()
        mask = random_units(*drawn.call_args.args).unflatten(1, (IMAGE // PATCH,) * 2)
        loss = theirs(*double(data.views), mask.long())
        loss.backward()
        found.note("loss", ours.loss, loss)
        found.gradients(method.encoder, twin.encoder)
        found.note("gradient", method.mask_token.grad, twin.mask_token.grad)
        found.note("gradient", method.predict.weight.grad, conv.weight.grad[:, :, 0, 0])
        found.note("gradient", method.predict.bias.grad, conv.bias.grad)
        descend(method, twin, conv)


def beit_method(references: References, found: Found) -> None:
    official = references.load("microsoft/unilm", "modeling_pretrain", inside="beit")
    shape: dict[str, Any] = {"patch": PATCH, "image_size": IMAGE, "depth": 2, "heads": 2, "hidden": 64}
    encoder = Eva("toy", dim=16, bias="shared", layer_scale=0.1, pool="mean", **shape)
    as_they_are = Preprocess(
        size=IMAGE, channels=3, low=(0.0,) * 3, high=(1.0,) * 3, mean=(0.0,) * 3, std=(1.0,) * 3
    )
    codes = Extras({"codes.weight": wave(7, 16), "codes.bias": wave(7)})
    given = Given(image_size=IMAGE, model=Model(toy(), as_they_are, extras=codes))
    method = beit.Method(encoder, beit.Config(block_share=4 / 16), given)
    scatter(method)
    theirs = official.VisionTransformerForMaskedImageModeling(
        img_size=IMAGE, patch_size=PATCH, vocab_size=7, embed_dim=16, depth=2, num_heads=2,
        norm_layer=partial(nn.LayerNorm, eps=1e-6), init_values=0.1, use_abs_pos_emb=False,
        use_shared_rel_pos_bias=True,
    ).double()  # fmt: skip
    head = {"mask_token": method.head.mask_token, "lm_head.weight": method.head.predict.weight}
    head["lm_head.bias"] = method.head.predict.bias
    lacking = theirs.load_state_dict({**encoder.state_dict(), **head}, strict=False)
    assert not lacking.unexpected_keys
    assert lacking.missing_keys == ["rel_pos_bias.relative_position_index"]
    for step in range(STEPS):
        data = batch(step, (1, IMAGE))
        with mock.patch.object(beit, "blockwise", side_effect=blockwise) as drawn:
            ours = method(data, Clock(step, STEPS, 0.0))
        ours.loss.backward()
        mask = blockwise(*drawn.call_args.args)
        grid = (IMAGE // PATCH,) * 2
        labels = method.tokenizer(data.views[0][:, 0], grid)[mask].argmax(-1)
        loss = F.cross_entropy(theirs(*double(data.views), mask), labels)
        loss.backward()
        found.note("loss", ours.loss, loss)
        found.gradients(method.encoder, theirs)
        found.note("gradient", method.head.mask_token.grad, theirs.mask_token.grad)
        found.note("gradient", method.head.predict.weight.grad, theirs.lm_head.weight.grad)
        found.note("gradient", method.head.predict.bias.grad, theirs.lm_head.bias.grad)
        descend(method, theirs)


def moco_method(references: References, found: Found) -> None:
    official = references.load("facebookresearch/moco-v3", "moco.builder")
    config = moco.Config(hidden=24, out=8, momentum=0.9, freeze_patch_embed=False)
    method = made(moco, config)

    class Base(nn.Module):
        """Our encoder with a head, as the published code expects of a network."""

        def __init__(self, num_classes: int) -> None:
            super().__init__()
            self.net = copy.deepcopy(method.encoder)
            self.head = nn.Linear(16, num_classes)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.net(x).pooled)

    theirs = official.MoCo_ViT(Base, 8, 24, config.temperature)
    theirs.base_encoder.head.load_state_dict(method.head.state_dict())
    theirs.predictor.load_state_dict(method.predictor.state_dict())
    theirs.momentum_encoder.load_state_dict(theirs.base_encoder.state_dict())
    theirs.double()
    # the two start alike, for the published code moves the average before a step and ours after it
    method.key_encoder.load_state_dict(method.encoder.state_dict())
    method.key_head.load_state_dict(method.head.state_dict())
    momentum = 1.0
    for step in range(STEPS):
        # batch norms of a few images would blow rounding errors up
        data = batch(step, (1, IMAGE), (1, IMAGE), images=16 * IMAGES)
        ours = method(data, Clock(step, STEPS, 0.0))
        ours.loss.backward()
        loss = theirs(*double(data.views), momentum)
        loss.backward()
        found.note("loss", ours.loss, loss)
        found.gradients(method.encoder, theirs.base_encoder.net)
        found.gradients(method.head, theirs.base_encoder.head)
        found.gradients(method.predictor, theirs.predictor)
        found.states(method.key_encoder, theirs.momentum_encoder.net)
        found.states(method.key_head, theirs.momentum_encoder.head)  # with its batch norms' statistics
        found.states(method.head, theirs.base_encoder.head)
        descend(method, theirs, rate=RATE / 10)
        momentum = moco.cosine(config.momentum, config.momentum_end, (step + 1) / STEPS)
        method.after_step(Clock(step + 1, STEPS, 0.0), [ours.carry])
    theirs._update_momentum_encoder(momentum)
    found.states(method.key_encoder, theirs.momentum_encoder.net)


def simclr_loss(references: References, found: Found) -> None:
    official = references.load("google-research/simclr", "tf2.objective")
    for step in range(STEPS):
        x, twin = leaf(wave(10, 8, phase=step))
        ours = contrastive.ntxent(*x.chunk(2), 0.1 * (step + 1))
        theirs = official.add_contrastive_loss(twin, temperature=0.1 * (step + 1))[0] / 2
        ours.backward()
        theirs.backward()
        found.note("loss", ours, theirs)
        found.note("gradient", x.grad, twin.grad)


def lightlys_loss(references: References, found: Found) -> None:
    from lightly.loss import NTXentLoss

    for step in range(STEPS):
        x, twin = leaf(wave(10, 8, phase=step))
        ours = contrastive.ntxent(*x.chunk(2), 0.1 * (step + 1))
        theirs = NTXentLoss(0.1 * (step + 1))(*twin.chunk(2))
        ours.backward()
        theirs.backward()
        found.note("loss", ours, theirs)
        found.note("gradient", x.grad, twin.grad)


def lejepa_statistic(references: References, found: Found) -> None:
    official = references.load("rbalestr-lab/lejepa", "lejepa.univariate.epps_pulley")
    official = official.EppsPulley().double()
    for step in range(STEPS):
        x, twin = leaf(wave(2, 6, 5, phase=step))
        directions = F.normalize(wave(5, 7, phase=step + 0.3), dim=0)
        ours, theirs = lejepa.sigreg(x, directions), official(twin @ directions.double()).mean()
        ours.backward()
        theirs.backward()
        found.note("loss", ours, theirs)
        found.note("gradient", x.grad, twin.grad)


def deit_losses(references: References, found: Found) -> None:
    official = references.file("facebookresearch/deit", "losses.py")
    rows, classes = 6, 5
    targets = wave(rows, classes, phase=2.0).softmax(-1)
    weights, count = torch.ones(rows), torch.tensor(float(rows))
    for kind, share in (("hard", 0.5), ("soft", 0.1)):
        teacher = wave(rows, classes, phase=1.0, scale=3.0)
        (own, own_twin), (told, told_twin) = (leaf(wave(rows, classes, phase=p)) for p in (0.3, 0.6))
        base = classification.soft_cross_entropy(own, targets.float(), weights, count)
        if kind == "hard":
            learned = classification.hard_distillation(told, teacher.float(), weights, count)
        else:
            learned = classification.soft_distillation(told, teacher.float(), 3.0, weights, count) / classes
        ours = (1 - share) * base + share * learned
        theirs = official.DistillationLoss(
            nn.CrossEntropyLoss(), lambda images, teacher=teacher: teacher, kind, share, 3.0
        )(None, (own_twin, told_twin), targets)
        ours.backward()
        theirs.backward()
        found.note("loss", ours, theirs)
        found.note("gradient", own.grad, own_twin.grad)
        found.note("gradient", told.grad, told_twin.grad)


def clip_losses(references: References, found: Found) -> None:
    official = references.file("mlfoundations/open_clip", "src/open_clip/loss.py")
    for kind in ("clip", "siglip"):
        (image, image_twin), (text, text_twin) = (leaf(wave(5, 8, phase=p)) for p in (0.0, 1.3))
        scale, scale_twin = leaf(torch.tensor(9.0))
        bias, bias_twin = leaf(torch.tensor(-4.0))
        features = [F.normalize(x, dim=-1) for x in (image_twin, text_twin)]
        if kind == "clip":
            ours = contrastive.clip(image, text, scale)
            theirs = official.ClipLoss()(*features, scale_twin)
        else:
            ours = contrastive.siglip(image, text, scale, bias)
            theirs = official.SigLipLoss()(*features, scale_twin, bias_twin)
        ours.backward()
        theirs.backward()
        found.note("loss", ours, theirs)
        for one, other in ((image, image_twin), (text, text_twin), (scale, scale_twin)):
            found.note("gradient", one.grad, other.grad)


def clip_tokens(references: References, found: Found) -> None:
    official = references.load("openai/CLIP", "clip.simple_tokenizer")
    folder = references.path("openai/CLIP")
    assert folder is not None
    merges = folder / "clip" / "bpe_simple_vocab_16e6.txt.gz"
    theirs, ours = official.SimpleTokenizer(str(merges)), bpe.Tokenizer(bpe.read_merges(merges))
    draw = random.Random(0)
    texts = [chr(i) for i in range(0x3000) if chr(i).isprintable()]
    texts += ["".join(draw.choices(texts, k=draw.randrange(1, 24))) for _ in range(3000)]
    folders = [Path(__file__).parent.parent / name for name in ("docs", "src/omma/methods")]
    texts += [line for f in folders for path in f.iterdir() if path.is_file() for line in path.open()]
    for text in texts:
        one, other = ours.encode(text), theirs.encode(text)
        found.note("loss", float(list(one) != list(other)), 0.0)


class Row(NamedTuple):
    name: str  # for --rows
    what: str
    source: str  # a repository of SOURCES, or an installed package
    part: str  # what of it
    compare: Callable[[References, Found], None]
    remark: str = ""


ROWS = [
    Row(
        "dino", "DINO, its whole step: loss, centre", "facebookresearch/dino", "main_dino.DINOLoss",
        dino_method, "the network, its crops and the teacher's average are ours on both sides",
    ),
    Row("head", "prototype head", "facebookresearch/dino", "vision_transformer.DINOHead", head),
    Row(
        "ibot", "iBOT, its whole step: both losses, both centres", "bytedance/ibot", "main_ibot.iBOTLoss",
        ibot_method, "masks are ours on both sides",
    ),
    Row(
        "dinov2", "DINOv2, its whole step: Sinkhorn-Knopp, KoLeo, two heads, the teacher",
        "facebookresearch/dinov2", "SSLMetaArch.forward_backward, update_teacher",
        partial(dinov2_method, balanced=True),
        "the gains of its prototypes, which it trains and we hold at 1, stand still",
    ),
    Row(
        "dinov2-centred", "DINOv2 with centring and one head: the same, both centres",
        "facebookresearch/dinov2", "the same", partial(dinov2_method, balanced=False),
        "on several processes its patch centre is a mean of their means, ours the mean of all hidden patches",
    ),
    Row(
        "sinkhorn", "Sinkhorn-Knopp", "facebookresearch/dinov2", "DINOLoss, iBOTPatchLoss", dinov2_sinkhorn,
        "both in fp32",
    ),
    Row("koleo", "KoLeo", "facebookresearch/dinov2", "KoLeoLoss", dinov2_koleo),
    Row(
        "patches", "masked patches' loss", "facebookresearch/dinov2", "iBOTPatchLoss.forward_masked",
        dinov2_patches,
    ),
    Row("rates", "learning rate of each layer", "facebookresearch/dinov2", "param_groups", dinov2_rates),
    Row(
        "mae", "MAE whole: weights and mask given, raw pixels", "facebookresearch/mae",
        "MaskedAutoencoderViT", partial(mae_method, normalise=False),
    ),
    Row(
        "mae-normalised", "the same, normalised pixels", "facebookresearch/mae", "MaskedAutoencoderViT",
        partial(mae_method, normalise=True),
    ),
    Row(
        "simmim", "SimMIM whole: weights and mask given", "microsoft/SimMIM",
        "SimMIM, VisionTransformerForSimMIM.forward", simmim_method,
        "it adds 1e-5 to the number of masked pixels; the blocks are ours on both sides",
    ),
    Row(
        "beit", "BEiT whole: weights, mask and codes given", "microsoft/unilm",
        "beit/modeling_pretrain.VisionTransformerForMaskedImageModeling", beit_method,
        "relative positions shared by all layers",
    ),
    Row(
        "moco", "MoCo v3, its whole step: loss, key encoder, batch norms", "facebookresearch/moco-v3",
        "MoCo_ViT", moco_method, "it moves the keys' average before a step, we after the one before",
    ),
    Row(
        "simclr", "NT-Xent", "google-research/simclr", "tf2.objective.add_contrastive_loss", simclr_loss,
        "it adds the two directions' means, we take the mean of them; TensorFlow's functions by torch's",
    ),
    Row("lightly", "NT-Xent", "lightly", "NTXentLoss", lightlys_loss),
    Row(
        "deit", "DeiT's distillation, hard and soft", "facebookresearch/deit", "DistillationLoss", deit_losses
    ),
    Row("clip", "CLIP's loss, and SigLIP's", "mlfoundations/open_clip", "ClipLoss, SigLipLoss", clip_losses),
    Row(
        "tokens", "CLIP's tokenizer (share of texts that differ)", "openai/CLIP", "SimpleTokenizer.encode",
        clip_tokens, "unicode oddities, random strings and these docs; without ftfy, which it calls first",
    ),
    Row("lejepa", "LeJEPA's statistic", "rbalestr-lab/lejepa", "EppsPulley", lejepa_statistic),
]  # fmt: skip


# ---------------------------------------------------------------- masks: theirs and ours have other draws
DRAWS = 3000


def described(masks: np.ndarray) -> list[float]:
    """Mean and deviation of the masked count, mean number of masked runs in a row of the grid."""
    counts = masks.sum((1, 2))
    starts = (np.diff(np.pad(masks, ((0, 0), (0, 0), (1, 0))).astype(int), axis=2) == 1).sum((1, 2))
    return [counts.mean(), counts.std(), starts.mean()]


def ours_blockwise(counts: np.ndarray, least: float) -> np.ndarray:
    key = Key(0, np.zeros(len(counts)), np.arange(len(counts)))
    return blockwise(key, 0x400, (14, 14), counts, least).view(-1, 14, 14).numpy()


def dinov2_masks(references: References) -> tuple[list[float], list[float]]:
    official = references.load("facebookresearch/dinov2", "dinov2.data.masking")
    generator = official.MaskingGenerator((14, 14), max_num_patches=0.5 * 196)
    counts = np.linspace(0.1, 0.5, DRAWS) * 196
    theirs = np.stack([generator(int(count)) for count in counts])
    return described(ours_blockwise(np.floor(counts), 4)), described(theirs)


def beit_masks(references: References) -> tuple[list[float], list[float]]:
    official = references.load("microsoft/unilm", "masking_generator", inside="beit")
    generator = official.MaskingGenerator((14, 14), num_masking_patches=75, min_num_patches=16)
    theirs = np.stack([generator() for _ in range(DRAWS)]).astype(bool)
    return described(ours_blockwise(np.full(DRAWS, 75), 16)), described(theirs)


def ibot_masks(references: References) -> tuple[list[float], list[float]]:
    official = references.load("bytedance/ibot", "loader")
    # of an image folder it needs the images only, here two views each
    views = ([torch.zeros(3, 14, 14)] * 2,)
    folder = official.ImageFolder
    with (
        mock.patch.object(folder, "__init__", return_value=None),
        mock.patch.object(folder, "__getitem__", return_value=views),
    ):
        dataset = official.ImageFolderMask(
            patch_size=1, pred_ratio=[0.0, 0.3], pred_ratio_var=[0.0, 0.2], pred_aspect_ratio=(0.3, 1 / 0.3)
        )
        theirs = np.concatenate([np.stack(dataset[i][-1]) for i in range(DRAWS // 2)])
    key = Key(0, np.zeros(DRAWS // 2), np.arange(DRAWS // 2))
    ours = view_masks(key, 2, (14, 14), 0.5, (0.1, 0.5), 16).view(-1, 14, 14).numpy()
    return described(ours), described(theirs)


def simmim_masks(references: References) -> tuple[list[float], list[float]]:
    official = references.load("microsoft/SimMIM", "data.data_simmim")
    generator = official.MaskGenerator(192, 32, 4, 0.6)
    theirs = np.stack([generator() for _ in range(DRAWS)]).astype(bool)
    key = Key(0, np.zeros(DRAWS), np.arange(DRAWS))
    ours = random_units(key, 0x400, (48, 48), 8, 0.6).view(-1, 48, 48).numpy()
    return described(ours), described(theirs)


class Masks(NamedTuple):
    name: str
    what: str
    source: str
    part: str
    compare: Callable[[References], tuple[list[float], list[float]]]


MASKS = [
    Masks(
        "beit-masks", "BEiT's blocks, 75 of 14x14", "microsoft/unilm", "beit/MaskingGenerator", beit_masks
    ),
    Masks(
        "dinov2-masks", "DINOv2's blocks, 10 to 50% of 14x14", "facebookresearch/dinov2",
        "MaskingGenerator", dinov2_masks,
    ),
    Masks(
        "ibot-masks", "iBOT's blocks, in half of the views", "bytedance/ibot", "ImageFolderMask", ibot_masks
    ),
    Masks(
        "simmim-masks", "SimMIM's units, 8x8 of 48x48", "microsoft/SimMIM", "MaskGenerator", simmim_masks
    ),
]  # fmt: skip


# ---------------------------------------------------------------- the tables
def missing(references: References, sources: set[str]) -> list[str]:
    """What to do about clones that are not there."""
    told = []
    for source in sorted(sources & set(SOURCES)):
        if references.path(source) is None:
            into = f"DIR/{source.replace('/', '+')}"
            told.append(f"{source} is missing: git clone --depth 1 {SOURCES[source]} {into}")
    return told


def named(references: References, source: str, part: str) -> str:
    if source in SOURCES:
        return f"{source} `{references.commit(source)}`, `{part}`"
    return f"{source} {version(source)}, `{part}`"


def compared(references: References, rows: list[Row]) -> tuple[list[str], float]:
    lines = ["| what | source | loss, outputs | gradients | state | |", "|---|---|---|---|---|---|"]
    worst = 0.0
    for row in rows:
        found = Found()
        row.compare(references, found)
        worst = max([worst, *found.worst.values()])
        numbers = [
            f"{found.worst[k]:.1e}" if k in found.worst else "-" for k in ("loss", "gradient", "state")
        ]
        source = named(references, row.source, row.part)
        lines.append(f"| {row.what} | {source} | {' | '.join(numbers)} | {row.remark} |")
        print(lines[-1], flush=True)
    print(f"largest of all: {worst:.1e}")
    return lines, worst


def drawn(references: References, rows: list[Masks]) -> list[str]:
    lines = [
        "| masks | source | masked: ours, theirs | its deviation | masked runs in rows |",
        "|---|---|---|---|---|",
    ]
    random.seed(0)
    np.random.seed(0)
    for row in rows:
        both = zip(*row.compare(references), strict=True)
        numbers = [f"{ours:.1f}, {theirs:.1f}" for ours, theirs in both]
        lines.append(f"| {row.what} | {named(references, row.source, row.part)} | {' | '.join(numbers)} |")
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--references", type=Path, required=True, metavar="DIR")
    names = [row.name for row in (*ROWS, *MASKS)]
    parser.add_argument("--rows", nargs="+", choices=names, default=names)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    if args.write and set(args.rows) != set(names):
        parser.error("--write wants all rows")
    references = References(args.references)
    rows = [row for row in ROWS if row.name in args.rows]
    masks = [row for row in MASKS if row.name in args.rows]
    lacking = missing(references, {row.source for row in (*rows, *masks)})
    print(*lacking, sep="\n", end="\n" if lacking else "")
    if lacking and args.write:
        sys.exit(1)
    have = [row for row in rows if row.source not in SOURCES or references.path(row.source) is not None]
    torch.set_num_threads(1)
    with on_this_machine():
        lines, worst = compared(references, have)
        more = drawn(references, [row for row in masks if references.path(row.source) is not None])
    if args.write:
        about = (
            f"Largest absolute differences; ours in fp32, theirs in fp64 unless said, torch "
            f"{version('torch').partition('+')[0]}. Methods: {STEPS} steps of gradient descent, each side "
            f"with its own weights and states, on images of random numbers; all parameters random."
        )
        chance = f"Masks are drawn by other generators: statistics of {DRAWS} draws, in patches."
        text = DOCUMENT.read_text()
        before, after = text.partition(BEGIN)[0], text.partition(END)[2]
        DOCUMENT.write_text(
            "\n".join([before + BEGIN, about, "", *lines, "", chance, "", *more, END + after])
        )
    if not worst < BOUND:
        sys.exit(f"a difference of {worst:.1e} is above {BOUND:.0e}")


if __name__ == "__main__":
    main()
