"""One map an image, of one kind: for programs (a server, a test) that draw nothing."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from omma.features.extract import prepare
from omma.inspection import registry
from omma.inspection.kinds import Subject
from omma.inspection.target import choose
from omma.weights import Model


def maps_of(
    model: Model,
    pixels: Float[Tensor, "n c h w"],
    what: str = "occlusion",
    class_name: str | None = None,
) -> Float[np.ndarray, "n h w"]:
    """How much each pixel matters, not negative; of one kind, at the resolution of the images.

    pixels: from `model.preprocess(images)`. class_name: a class of the model's classifier; without it the
    likeliest of each image. Raises ValueError for an unknown kind, one that this model cannot have or that is
    no map, and for an unknown class.
    """
    subject, _ = subject_of(model, pixels, class_name)
    (kind,) = registry.chosen((what,), subject)
    if kind.one_map is None:
        with_maps = [name for name in registry.KINDS if registry.find(name).one_map is not None]
        raise ValueError(f"what={what!r} has no single map: choose among {', '.join(with_maps)}")
    return enlarged(kind.one_map(subject), subject.size)


def enlarged(maps: Float[np.ndarray, "n gh gw"], size: tuple[int, int]) -> Float[np.ndarray, "n h w"]:
    """Maps at the images' resolution, smoothly where they are coarser; what is not finite becomes 0."""
    x = torch.from_numpy(np.nan_to_num(maps, posinf=0.0, neginf=0.0)).double()[:, None]
    if x.shape[-2:] != size:
        finer = x.shape[-2] > size[0]
        x = F.interpolate(x, size, mode="area") if finer else F.interpolate(x, size, mode="bilinear")
    return x[:, 0].numpy()


def subject_of(
    model: Model, pixels: Float[Tensor, "n c h w"], class_name: str | None = None, **facts: Any
) -> tuple[Subject, tuple[str, ...]]:
    """The subject of an explanation, and the classifier's answers in words; facts: fields of `Subject`."""
    first = next(model.encoder.parameters())
    pixels = pixels.to(first.device, first.dtype)
    target, answers = choose(model, pixels, class_name)
    return Subject(model=model, pixels=pixels, target=target, class_name=class_name, **facts), answers


def on_device(
    model: Model, device: torch.device, precision: torch.dtype, image_size: int | None = None
) -> Model:
    """A copy on the device; image_size: pixels of the input instead of the model's own.

    Raises ValueError for a size that is no multiple of the patch.
    """
    preprocess = model.preprocess
    if image_size is not None:
        if image_size < 1 or image_size % model.encoder.patch:
            raise ValueError(f"--image-size {image_size}: must be a multiple of {model.encoder.patch} px")
        preprocess = replace(preprocess, size=image_size)
    encoder = prepare(model.encoder, device, precision)
    return Model(encoder, preprocess, model.provenance, model.extras)
