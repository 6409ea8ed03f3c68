"""A network's input back as a picture."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from omma.core.protocols import Preprocess


def shown(images: Float[Tensor, "n c h w"], preprocess: Preprocess) -> Float[np.ndarray, "n h w c"]:
    """Normalised images back to values in [0, 1], channels last: what resizing and cropping left of them."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (preprocess.mean, preprocess.std))
    return (images.float().cpu() * std + mean).clamp(0, 1).permute(0, 2, 3, 1).numpy()


def limits(image: Float[np.ndarray, "h w c"]) -> tuple[np.ndarray, np.ndarray]:
    """The values of a picture in [0, 1] shown as black and white: those, or percentiles of many channels."""
    if image.shape[-1] <= 3:
        return np.zeros(image.shape[-1]), np.ones(image.shape[-1])
    low, high = np.nanpercentile(image[..., :3].reshape(-1, 3), (1, 99), axis=0)
    return low, np.where(high > low, high, low + 1)
