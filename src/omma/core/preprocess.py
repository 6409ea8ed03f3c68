"""How a trained model's input is made from a decoded image."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """From a decoded image [h, w, c] to the network's input [c, size, size].

    Values are brought to the units of `low` and `high` by the image's type (data/sources/values.py), become
    (value - low) / (high - low), clipped to [0, 1], then (x - mean) / std. The shorter side is resized to
    size / crop_share (bicubic, antialiased) and the centre is cut.
    """

    size: int
    channels: int
    low: tuple[float, ...]  # per channel, in raw units: 0 for 8-bit
    high: tuple[float, ...]  # 255 for 8-bit
    mean: tuple[float, ...]  # after scaling to [0, 1]
    std: tuple[float, ...]
    crop_share: float = 1.0
    # white in the units of low and high: 255 (8-bit files), 65535 (16-bit), 1 (floats in [0, 1]); None for
    # raw measurements, which no type says how to scale
    full_scale: float | None = None

    def __post_init__(self) -> None:
        if self.full_scale is None and set(self.low) == {0.0} and set(self.high) == {255.0}:
            object.__setattr__(self, "full_scale", 255.0)  # models of earlier versions have no such key

    def normalise(self, images: Float[Tensor, "*b c h w"]) -> Float[Tensor, "*b c h w"]:
        """(x - mean) / std on values in [0, 1]."""
        mean, std = (torch.tensor(v, device=images.device, dtype=images.dtype) for v in (self.mean, self.std))
        return (images - mean[:, None, None]) / std[:, None, None]

    def translate(self, images: Float[Tensor, "*b c h w"], other: "Preprocess") -> Float[Tensor, "*b c h w"]:
        """From this normalisation to that of `other`: its network sees the same raw values.

        raw = low + (high - low)(mean + std y) for both, converted between their full scales. If the ranges
        differ, values beyond other's are clipped. Raises ValueError if the numbers of channels differ.
        """
        if self.channels != other.channels:
            raise ValueError(
                f"images have {self.channels} channels, the trained model was made for {other.channels}: "
                "choose one that was made for such images"
            )
        # in parts of the full scale, where both have one
        common = self.full_scale is not None and other.full_scale is not None
        raw = [
            ((low + (high - low) * mean) / unit, (high - low) * std / unit)
            for p in (self, other)
            for unit in [p.full_scale if common and p.full_scale else 1.0]
            for low, high, mean, std in zip(p.low, p.high, p.mean, p.std, strict=True)
        ]
        pairs = list(zip(raw[: self.channels], raw[self.channels :], strict=True))

        def each(values: Iterable[float]) -> Tensor:
            return torch.tensor(list(values), device=images.device, dtype=images.dtype)[:, None, None]

        factor = each(scale / to for (_, scale), (_, to) in pairs)
        moved = images * factor + each((start - to) / scale for (start, _), (to, scale) in pairs)
        if (self.low, self.high, self.full_scale) == (other.low, other.high, other.full_scale):
            return moved
        ends = zip(other.mean, other.std, strict=True)
        least, most = zip(*((-mean / std, (1 - mean) / std) for mean, std in ends), strict=True)
        return moved.clamp(each(least), each(most))
