"""How a trained model's input is made from a decoded image."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """From a decoded image [h, w, c] to the network's input [c, size, size].

    Raw values become (value - low) / (high - low), clipped to [0, 1], then (x - mean) / std. The shorter side
    is resized to size / crop_share (bicubic, antialiased) and the centre is cut.
    """

    size: int
    channels: int
    low: tuple[float, ...]  # per channel, in raw units: 0 for 8-bit
    high: tuple[float, ...]  # 255 for 8-bit
    mean: tuple[float, ...]  # after scaling to [0, 1]
    std: tuple[float, ...]
    crop_share: float = 1.0

    def normalise(self, images: Float[Tensor, "*b c h w"]) -> Float[Tensor, "*b c h w"]:
        """(x - mean) / std on values in [0, 1]."""
        mean, std = (torch.tensor(v, device=images.device, dtype=images.dtype) for v in (self.mean, self.std))
        return (images - mean[:, None, None]) / std[:, None, None]

    def translate(self, images: Float[Tensor, "*b c h w"], other: "Preprocess") -> Float[Tensor, "*b c h w"]:
        """From this normalisation to that of `other`: its network sees the same raw values.

        raw = low + (high - low)(mean + std y) for both. If the ranges differ, values beyond other's are
        clipped. Raises ValueError if the numbers of channels differ.
        """
        if self.channels != other.channels:
            raise ValueError(
                f"images have {self.channels} channels, the trained model was made for {other.channels}: "
                "choose one that was made for such images"
            )
        raw = [
            (low + (high - low) * mean, (high - low) * std)
            for p in (self, other)
            for low, high, mean, std in zip(p.low, p.high, p.mean, p.std, strict=True)
        ]
        pairs = list(zip(raw[: self.channels], raw[self.channels :], strict=True))

        def each(values: Iterable[float]) -> Tensor:
            return torch.tensor(list(values), device=images.device, dtype=images.dtype)[:, None, None]

        factor = each(scale / to for (_, scale), (_, to) in pairs)
        moved = images * factor + each((start - to) / scale for (start, _), (to, scale) in pairs)
        if self.low == other.low and self.high == other.high:
            return moved
        ends = zip(other.mean, other.std, strict=True)
        least, most = zip(*((-mean / std, (1 - mean) / std) for mean, std in ends), strict=True)
        return moved.clamp(each(least), each(most))
