"""lightly's steps, composed as in its examples/pytorch, on timm's VisionTransformer.

Schedules of temperature, decay and momentum cost nothing and are constant here. The race's ViT and AdamW
replace the examples' ResNet and Adam or SGD.
"""

import copy
import warnings
from typing import Any

import torch
from common import Contender, contender_name
from setting import Setting
from torch import Tensor, nn

from peers import stepper
from peers.timm_ import vit

MOMENTUM = 0.992


def frozen(module: nn.Module) -> nn.Module:
    """A teacher: frozen, in evaluation mode."""
    return module.requires_grad_(False).eval()


def adamw(s: Setting, *modules: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW([p for m in modules for p in m.parameters()], lr=s.lr)


# ---------------------------------------------------------------- dino.py
def dino(s: Setting, bf16: bool, per_size: bool) -> Contender:
    """per_size: one call per crop size, as in dinov2.py; else one per crop, as in dino.py."""
    from lightly.loss import DINOLoss
    from lightly.models.modules import DINOProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum

    crops, dim = s.crops(), s.shape.dim
    student = vit(s, dynamic_img_size=True).to(s.device)
    head = DINOProjectionHead(dim, s.hidden, s.bottleneck, s.prototypes_, freeze_last_layer=-1).to(s.device)
    teacher = copy.deepcopy(student)
    teacher_head = DINOProjectionHead(dim, s.hidden, s.bottleneck, s.prototypes_).to(s.device)
    deactivate_requires_grad(teacher)
    deactivate_requires_grad(teacher_head)
    criterion = DINOLoss(output_dim=s.prototypes_, warmup_teacher_temp_epochs=5).to(s.device)

    def by_student(x: Tensor) -> Tensor:
        return head(student(x).flatten(start_dim=1))

    def by_teacher(x: Tensor) -> Tensor:
        return teacher_head(teacher(x).flatten(start_dim=1))

    def average() -> None:
        update_momentum(student, teacher, m=MOMENTUM)
        update_momentum(head, teacher_head, m=MOMENTUM)

    def loss() -> Tensor:
        if per_size:
            teacher_out = list(by_teacher(torch.cat(crops[:2])).chunk(2))
            student_out = list(by_student(torch.cat(crops[:2])).chunk(2))
            if len(crops) > 2:
                student_out += by_student(torch.cat(crops[2:])).chunk(len(crops) - 2)
        else:
            teacher_out = [by_teacher(crop) for crop in crops[:2]]
            student_out = [by_student(crop) for crop in crops]
        return criterion(teacher_out, student_out, epoch=0)

    how = "a call a size" if per_size else "a call a crop"
    step = stepper(s, bf16, loss, adamw(s, student, head), after=average)
    return Contender(contender_name("lightly", bf16, how), step, s.batch, bf16=bf16)


# ---------------------------------------------------------------- ibot.py and dinov2.py
def masked(s: Setting) -> tuple[nn.Module, nn.Module]:
    """Student and teacher as built in both examples."""
    from lightly.models.modules import MaskedVisionTransformerTIMM
    from lightly.models.utils import update_drop_path_rate

    network = vit(s, pos_embed="learn", dynamic_img_size=True, init_values=s.layer_scale)
    teacher = MaskedVisionTransformerTIMM(vit=network, antialias=False, pos_embed_initialization="skip")
    student = copy.deepcopy(teacher)
    update_drop_path_rate(student.vit, drop_path_rate=s.drop_path, mode="uniform")
    return student.to(s.device), frozen(teacher).to(s.device)


def distilled(
    s: Setting, bf16: bool, head: nn.ModuleDict, teacher_head: nn.ModuleDict, koleo: float
) -> Contender:
    """The common part of ibot.py and dinov2.py: heads for "image" and "patch", masks, losses, averages."""
    from lightly.loss import DINOLoss, IBOTPatchLoss, KoLeoLoss
    from lightly.models.utils import random_block_mask, update_momentum

    crops = s.crops()
    globals_, locals_ = torch.cat(crops[:2]), crops[2:]
    student, teacher = masked(s)
    head, teacher_head = head.to(s.device), frozen(teacher_head).to(s.device)
    images = DINOLoss(output_dim=s.prototypes_).to(s.device)
    patches = IBOTPatchLoss(output_dim=s.prototypes_).to(s.device)
    spread_loss = KoLeoLoss().to(s.device)
    rows, columns = teacher.vit.patch_embed.grid_size

    def loss() -> Tensor:
        block = random_block_mask(size=(len(globals_), rows, columns), device=s.device)
        mask = torch.zeros(len(globals_), teacher.sequence_length, dtype=torch.bool, device=s.device)
        mask[:, 1:] = block.flatten(start_dim=1)  # the class token stays
        with torch.no_grad():
            features = teacher.encode(globals_)
            teacher_out = teacher_head["image"](features[:, 0])
            teacher_patches = teacher_head["patch"](features[mask])
        features = student.encode(globals_, mask=mask)
        pooled = features[:, 0]
        student_out, student_patches = head["image"](pooled), head["patch"](features[mask])
        if locals_:
            student_out = torch.cat([student_out, head["image"](student.encode(torch.cat(locals_))[:, 0])])
        value = images(teacher_out.chunk(2), student_out.chunk(len(crops)), teacher_temp=0.04)
        value = value + patches(teacher_patches, student_patches, block, teacher_temp=0.04)
        return value + koleo * sum(spread_loss(x) for x in pooled.chunk(2)) if koleo else value

    def cancel() -> None:
        if hasattr(head["image"], "cancel_last_layer_gradients"):  # iBOT's: none are, after the first epoch
            head["image"].cancel_last_layer_gradients(current_epoch=1)

    def average() -> None:
        update_momentum(student, teacher, m=MOMENTUM)
        update_momentum(head, teacher_head, m=MOMENTUM)

    step = stepper(s, bf16, loss, adamw(s, student, head), cancel, average)
    return Contender(contender_name("lightly", bf16), step, s.batch, bf16=bf16)


def ibot(s: Setting, bf16: bool) -> Contender:
    """One head for images and patches."""
    from lightly.models.modules import DINOProjectionHead

    def heads(**options: Any) -> nn.ModuleDict:
        one = DINOProjectionHead(s.shape.dim, s.hidden, s.bottleneck, s.prototypes_, **options)
        return nn.ModuleDict({"image": one, "patch": one})

    return distilled(s, bf16, heads(norm_last_layer=False), heads(), koleo=0.0)


def dinov2(s: Setting, bf16: bool) -> Contender:
    """One head for both, or one for each (`Setting.untied`); the example offers both."""
    from lightly.models.modules import DINOv2ProjectionHead

    def heads() -> nn.ModuleDict:
        size = (s.shape.dim, s.hidden, s.bottleneck, s.prototypes_)
        one = DINOv2ProjectionHead(*size)
        return nn.ModuleDict({"image": one, "patch": DINOv2ProjectionHead(*size) if s.untied else one})

    return distilled(s, bf16, heads(), heads(), koleo=0.1)


# ---------------------------------------------------------------- mae.py
class MAE(nn.Module):
    """A masked autoencoder: the encoder sees visible patches only; a light decoder predicts the pixels."""

    def __init__(self, s: Setting) -> None:
        super().__init__()
        from lightly.models.modules import MAEDecoderTIMM, MaskedVisionTransformerTIMM

        network = vit(s)
        self.patch = s.patch
        self.backbone = MaskedVisionTransformerTIMM(vit=network)
        self.sequence_length = self.backbone.sequence_length
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its successor is the same network in other files
            self.decoder = MAEDecoderTIMM(
                num_patches=network.patch_embed.num_patches,
                patch_size=s.patch,
                embed_dim=s.shape.dim,
                decoder_embed_dim=s.decoder_.dim,
                decoder_depth=s.decoder_.depth,
                decoder_num_heads=s.decoder_.heads,
            )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        from lightly.models import utils

        size = (len(images), self.sequence_length)
        keep, mask = utils.random_token_mask(size, mask_ratio=0.75, device=images.device)
        encoded = self.decoder.embed(self.backbone.encode(images=images, idx_keep=keep))
        tokens = utils.repeat_token(self.decoder.mask_token, size)
        tokens = utils.set_at_index(tokens, keep, encoded.type_as(tokens))
        decoded = utils.get_at_index(self.decoder.decode(tokens), mask)
        target = utils.get_at_index(utils.patchify(images, self.patch), mask - 1)  # there is no class patch
        return self.decoder.predict(decoded), target


def mae(s: Setting, bf16: bool) -> Contender:
    (images,) = s.crops()
    model, criterion = MAE(s).to(s.device), nn.MSELoss()
    step = stepper(s, bf16, lambda: criterion(*model(images)), adamw(s, model))
    return Contender(contender_name("lightly", bf16), step, s.batch, bf16=bf16)


# ---------------------------------------------------------------- simclr.py and moco.py
def simclr(s: Setting, bf16: bool, joined: bool) -> Contender:
    """joined: both views in one call; the example has one call per view."""
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead

    one, two = s.crops()
    model = nn.Sequential(vit(s), SimCLRProjectionHead(s.shape.dim, s.projector, s.out)).to(s.device)
    criterion = NTXentLoss(temperature=s.temperature)

    def loss() -> Tensor:
        return criterion(*(model(torch.cat([one, two])).chunk(2) if joined else (model(one), model(two))))

    step = stepper(s, bf16, loss, adamw(s, model))
    return Contender(
        contender_name("lightly", bf16, "one call" if joined else "a call a view"), step, s.batch, bf16=bf16
    )


def moco(s: Setting, bf16: bool) -> Contender:
    """MoCo v2: queries from one view, keys from the other by the averaged network; a queue of keys."""
    from lightly.loss import NTXentLoss
    from lightly.models.modules import MoCoProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum

    one, two = s.crops()
    model = nn.Sequential(vit(s), MoCoProjectionHead(s.shape.dim, s.projector, s.out)).to(s.device)
    slow = copy.deepcopy(model)
    deactivate_requires_grad(slow)
    criterion = NTXentLoss(temperature=s.temperature, memory_bank_size=(s.queue, s.out)).to(s.device)
    step = stepper(
        s,
        bf16,
        lambda: criterion(model(one), slow(two).detach()),
        adamw(s, model),
        after=lambda: update_momentum(model, slow, m=0.99),
    )
    return Contender(contender_name("lightly", bf16), step, s.batch, bf16=bf16)
