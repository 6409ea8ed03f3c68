"""One map an image, of one kind: for programs (a server, a test) that draw nothing."""

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

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
    first = next(model.encoder.parameters())
    pixels = pixels.to(first.device, first.dtype)
    target, _ = choose(model, pixels, class_name)
    subject = Subject(model=model, pixels=pixels, target=target, class_name=class_name)
    (kind,) = registry.chosen((what,), subject)
    if kind.one_map is None:
        with_maps = [name for name in registry.KINDS if registry.find(name).one_map is not None]
        raise ValueError(f"what={what!r} has no single map: choose among {', '.join(with_maps)}")
    return enlarged(kind.one_map(subject), subject.size)


def enlarged(
    maps: Float[np.ndarray, "n gh gw"], size: tuple[int, int]
) -> Float[np.ndarray, "n h w"]:
    """Maps at the images' resolution, smoothly where they are coarser; what is not finite becomes 0."""
    x = torch.from_numpy(np.nan_to_num(maps, posinf=0.0, neginf=0.0)).double()[:, None]
    if x.shape[-2:] != size:
        finer = x.shape[-2] > size[0]
        x = F.interpolate(x, size, mode="area") if finer else F.interpolate(x, size, mode="bilinear")
    return x[:, 0].numpy()


def subject_of(
    model: Model, pixels: Float[Tensor, "n c h w"], class_name: str | None = None, **facts: object
) -> tuple[Subject, Float[Tensor, "n k"] | None]:
    """The subject of an explanation, and the classes' probabilities, where the model has a classifier."""
    target, probabilities = choose(model, pixels, class_name)
    subject = Subject(model=model, pixels=pixels, target=target, class_name=class_name)
    return replace(subject, **facts), probabilities
