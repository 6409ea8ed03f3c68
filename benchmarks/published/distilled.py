"""DINO, iBOT and DINOv2 compared with the published code: add a function here and to ROWS."""

import copy
import types
from functools import partial
from typing import Any
from unittest import mock

import torch
import torch.distributed
from published.comparing import (
    HEAD,
    IMAGE,
    PATCH,
    STEPS,
    TEMPERATURES,
    Differences,
    Row,
    descend,
    double,
    leaf,
    made,
    multi_crop,
    scatter,
    temperature_at,
    wave,
)
from published.references import References
from torch import Tensor, nn

from omma.backbones.layers.heads import PrototypeHead
from omma.backbones.vit import ViT
from omma.core.protocols import Clock
from omma.losses import distillation
from omma.losses.koleo import koleo
from omma.methods import dino, dinov2, ibot
from omma.methods.shared import masked_crops
from omma.methods.shared.masking import hide, view_masks
from omma.methods.shared.sinkhorn import centre
from omma.train import ema


def dino_method(references: References, differences: Differences) -> None:
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
        differences.note("loss", ours.loss, theirs)
        differences.gradients(method, twin)
        descend(method, twin)
        method.after_step(Clock(step + 1, STEPS, 0.0), [ours.carry])
        for slow, fast in ((twin.teacher, twin.encoder), (twin.teacher_head, twin.head)):
            ema.update(slow, fast, dino.cosine(0.996, 1.0, (step + 1) / STEPS))
        differences.note("state", method.centre, loss_of.center[0])


def head(references: References, differences: Differences) -> None:
    official = references.load("facebookresearch/dino", "vision_transformer")
    for gain in (False, True):
        _head(official, gain, differences)


def _head(official: Any, gain: bool, differences: Differences) -> None:
    ours = PrototypeHead(16, 24, 32, 8, gain)
    scatter(ours)
    theirs = official.DINOHead(16, 24, hidden_dim=32, bottleneck_dim=8, norm_last_layer=not gain).double()
    if gain:
        theirs.last_layer.weight_g.data.copy_(ours.last.gain.data)
    theirs.mlp.load_state_dict(ours.mlp.state_dict())
    theirs.last_layer.weight_v.data.copy_(ours.last.weight.data)
    x, twin = leaf(wave(5, 16))
    out, expected = ours(x), theirs(twin)
    differences.note("loss", out, expected)
    (out * wave(5, 24, phase=1.0)).sum().backward()
    (expected * wave(5, 24, phase=1.0)).sum().backward()
    differences.gradients(ours.mlp, theirs.mlp)
    differences.note("gradient", ours.last.weight.grad, theirs.last_layer.weight_v.grad)
    if gain:
        differences.note("gradient", ours.last.gain.grad, theirs.last_layer.weight_g.grad)
    differences.note("gradient", x.grad, twin.grad)


def ibot_method(references: References, differences: Differences) -> None:
    official = references.load("bytedance/ibot", "main_ibot")
    method = made(ibot, ibot.Config(**HEAD, **TEMPERATURES, mask_probability=0.7))
    twin = copy.deepcopy(method).double()
    loss_of = official.iBOTLoss(24, 24, 2, 3, 0.04, 0.07, 0.04, 0.07, STEPS, STEPS).double()
    grid = (IMAGE // PATCH,) * 2
    for step in range(STEPS):
        data = multi_crop(step)
        with mock.patch.object(masked_crops, "view_masks", side_effect=view_masks) as drawn:
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
        differences.note("loss", ours.loss, theirs["loss"])
        differences.note("loss", ours.metrics["patch_loss"], theirs["patch"])
        differences.gradients(method, twin)
        descend(method, twin)
        method.after_step(Clock(step + 1, STEPS, 0.0), [ours.carry])
        for slow, fast in ((twin.teacher, twin.encoder), (twin.teacher_head, twin.head)):
            ema.update(slow, fast, ibot.cosine(0.996, 1.0, (step + 1) / STEPS))
        differences.note("state", method.centre, loss_of.center[0])
        differences.note("state", method.patch_centre, loss_of.center2[0, 0])


class DinoV2Backbone(nn.Module):
    """omma's encoder with the interface that DINOv2's training code calls."""

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


def dinov2_method(references: References, differences: Differences, balanced: bool) -> None:
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
        with mock.patch.object(masked_crops, "view_masks", side_effect=view_masks) as drawn:
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
        differences.note("loss", ours.loss, image_loss + patch_loss + spread)
        differences.note("loss", ours.metrics["image_loss"], image_loss)
        differences.note("loss", ours.metrics["patch_loss"], patch_loss)
        differences.gradients(method, twin)
        descend(method, twin)
        method.after_step(Clock(step + 1, STEPS, 0.0), [ours.carry])
        arch.update_teacher(dinov2.cosine(config.momentum, 1.0, (step + 1) / STEPS))
        for name in ("teacher", "teacher_head", *(["teacher_patch_head"] if balanced else [])):
            differences.states(getattr(method, name), getattr(twin, name))
        if not balanced:
            for loss in (arch.dino_loss, arch.ibot_patch_loss):
                loss.apply_center_update()
            differences.note("state", method.centre, arch.dino_loss.center[0])
            differences.note("state", method.patch_centre, arch.ibot_patch_loss.center.flatten())


def dinov2_sinkhorn(references: References, differences: Differences) -> None:
    official = references.load("facebookresearch/dinov2", "dinov2.loss")
    for n, k in ((6, 4), (37, 24), (8, 64)):
        for temperature in (0.04, 0.07):
            logits = wave(n, k, phase=n)
            ours = distillation.probabilities(logits, centre(logits, temperature), temperature)
            differences.note("loss", ours, official.DINOLoss(k).sinkhorn_knopp_teacher(logits, temperature))
            count = torch.full((1,), n)
            theirs = official.iBOTPatchLoss(k).sinkhorn_knopp_teacher(logits, temperature, count)
            differences.note("loss", ours, theirs)


def dinov2_koleo(references: References, differences: Differences) -> None:
    official = references.load("facebookresearch/dinov2", "dinov2.loss").KoLeoLoss()
    for rows in (2, 9, 32):
        x, twin = leaf(wave(rows, 16, phase=rows, scale=3.0))
        ours, theirs = koleo(x), official(twin)
        ours.backward()
        theirs.backward()
        differences.note("loss", ours, theirs)
        differences.note("gradient", x.grad, twin.grad)


def dinov2_patches(references: References, differences: Differences) -> None:
    official = references.load("facebookresearch/dinov2", "dinov2.loss").iBOTPatchLoss(24)
    mask = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]]).bool()  # nothing of one image is masked
    counts = mask.sum(1)[:, None].expand_as(mask)[mask].float()
    for step in range(STEPS):
        features, their_features = leaf(wave(4, 8, phase=step))
        prototypes, their_prototypes = leaf(wave(24, 8, phase=step + 0.3))
        teacher = wave(4, 24, phase=step + 0.6, scale=3.0).softmax(-1)
        ours = distillation.cross_entropy(
            distillation.Student(features, prototypes, 0.1, normalised=False),
            distillation.hidden_patches(teacher, counts, len(mask), len(features)),
        )
        theirs = official.forward_masked(their_features @ their_prototypes.T, teacher.double(), mask)
        ours.backward()
        theirs.backward()
        differences.note("loss", ours, theirs)
        differences.note("gradient", features.grad, their_features.grad)
        differences.note("gradient", prototypes.grad, their_prototypes.grad)


def dinov2_rates(references: References, differences: Differences) -> None:
    official = references.load("facebookresearch/dinov2", "dinov2.utils.param_groups")
    method = made(dinov2, dinov2.Config(layer_decay=0.9, **HEAD), depth=5, registers=2)
    names = {id(p): name for name, p in method.named_parameters()}
    for group in method.groups():
        for p in group.params:
            name = names[id(p)].replace("encoder.", "backbone.").replace("reg_token", "register_tokens")
            name = name.replace("mask_token", "backbone.mask_token")
            rate = official.get_vit_lr_decay_rate(name, 0.9, 5 if name.startswith("backbone") else 0)
            differences.note("state", group.lr_scale, rate * (0.2 if "patch_embed" in name else 1.0))


ROWS = [
    Row(
        "dino", "DINO, its whole step: loss, centre", "facebookresearch/dino", "main_dino.DINOLoss",
        dino_method, "the network, its crops and the teacher's average are ours on both sides",
    ),
    Row(
        "head", "prototype head, with and without trained gains", "facebookresearch/dino",
        "vision_transformer.DINOHead", head,
    ),
    Row(
        "ibot", "iBOT, its whole step: both losses, both centres", "bytedance/ibot", "main_ibot.iBOTLoss",
        ibot_method, "masks are ours on both sides",
    ),
    Row(
        "dinov2", "DINOv2, its whole step: Sinkhorn-Knopp, KoLeo, two heads, the teacher",
        "facebookresearch/dinov2", "SSLMetaArch.forward_backward, update_teacher",
        partial(dinov2_method, balanced=True), "prototypes' gains are 1 here; whole steps train them",
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
]  # fmt: skip
