"""The papers' own code, from clones in a folder: the steps of facebookresearch/dino and facebookresearch/mae.

Networks, losses, clipping and averages are those of the repositories, called as in their training scripts.
Mixed precision is bf16 instead of fp16. DistributedDataParallel is omitted, since there is one process.
"""

import atexit
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import torch
from common import Contender, contender_name
from published.references import References
from setting import Setting
from torch import Tensor, nn

from peers import stepper

SOURCES = {"dino": "facebookresearch/dino", "mae": "facebookresearch/mae"}


def load(s: Setting, module: str) -> Any:
    """Import a module of the clone. Raises ValueError if there is none."""
    assert s.references is not None
    source, clones = SOURCES[s.method], References(s.references)
    if clones.path(source) is None:
        raise ValueError(f"{source} is not in {s.references}: git clone https://github.com/{source} there")
    return clones.load(source, module)


def dino(s: Setting, bf16: bool) -> Contender:
    """main_dino.py."""
    theirs = load(s, "main_dino")
    if not torch.distributed.is_initialized():  # its centre is summed over processes
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        atexit.register(torch.distributed.destroy_process_group)
    crops, size = s.crops(), s.shape

    def network() -> nn.Module:
        backbone = theirs.vits.VisionTransformer(
            img_size=[s.image_size],
            patch_size=s.patch,
            embed_dim=size.dim,
            depth=size.depth,
            num_heads=size.heads,
            mlp_ratio=size.ratio,
            qkv_bias=True,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
        )
        head = theirs.DINOHead(size.dim, s.prototypes_, hidden_dim=s.hidden, bottleneck_dim=s.bottleneck)
        return theirs.utils.MultiCropWrapper(backbone, head).to(s.device)

    student, teacher = network(), network()
    teacher.load_state_dict(student.state_dict())
    teacher.requires_grad_(False)
    criterion = theirs.DINOLoss(s.prototypes_, len(crops), 0.04, 0.04, 0, 1).to(s.device)
    optimizer = torch.optim.AdamW(theirs.utils.get_params_groups(student), lr=s.lr)

    def loss() -> Tensor:
        return criterion(student(crops), teacher(crops[:2]), 0)

    def clip() -> None:
        theirs.utils.clip_gradients(student, 3.0)
        theirs.utils.cancel_gradients_last_layer(0, student, 0)

    @torch.no_grad()
    def average() -> None:
        for new, old in zip(student.parameters(), teacher.parameters(), strict=True):
            old.data.mul_(0.996).add_((1 - 0.996) * new.detach().data)

    step = stepper(s, bf16, loss, optimizer, clip, average)
    return Contender(contender_name("official", bf16), step, s.batch, bf16=bf16)


def mae(s: Setting, bf16: bool) -> Contender:
    """engine_pretrain.py and models_mae.py, on timm's blocks of today."""
    theirs, size, decoder = load(s, "models_mae"), s.shape, s.decoder_
    with mock.patch.object(np, "float", float, create=True):  # an older NumPy's
        model = theirs.MaskedAutoencoderViT(
            img_size=s.image_size,
            patch_size=s.patch,
            embed_dim=size.dim,
            depth=size.depth,
            num_heads=size.heads,
            mlp_ratio=size.ratio,
            decoder_embed_dim=decoder.dim,
            decoder_depth=decoder.depth,
            decoder_num_heads=decoder.heads,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            norm_pix_loss=True,
        ).to(s.device)
    (images,) = s.crops()
    optimizer = torch.optim.AdamW(model.parameters(), lr=s.lr, betas=(0.9, 0.95))
    step = stepper(s, bf16, lambda: model(images, mask_ratio=0.75)[0], optimizer)
    return Contender(contender_name("official", bf16), step, s.batch, bf16=bf16)
