"""Plans of crops that several methods share."""

from dataclasses import dataclass
from typing import Any

from omma import backbones
from omma.core.checks import at_least_zero, range_within_one
from omma.core.protocols import Colour, Crop


def pair_colour(strength: float, blur: float, solarise: float) -> Colour:
    """BYOL's colour augmentation [Grill 2020, arXiv 2006.07733, appendix B], as in DINO and MoCo v3.

    strength: of the jitter, 1 in the papers. blur, solarise: probabilities.
    """
    return Colour(
        brightness=0.4 * strength, contrast=0.4 * strength, saturation=0.2 * strength, hue=0.1 * strength,
        jitter_p=0.8, grey_p=0.2, blur_p=blur, solarise_p=solarise,
    )  # fmt: skip


def pair(
    size: int, scale: tuple[float, float], strength: float = 1.0, blur: bool = True
) -> tuple[Crop, Crop]:
    """Two crops with different blur and solarisation."""
    first, second = (
        pair_colour(strength, p if blur else 0.0, solarise) for p, solarise in ((1.0, 0.0), (0.1, 0.2))
    )
    return Crop(size=size, scale=scale, colour=first), Crop(size=size, scale=scale, colour=second)


def smaller(image_size: int, plain: bool = False) -> int | None:
    """Pixels of faster views: 3/4 of the image size, in whole patches; None under 32 px.

    plain: the network makes more tokens of a view than a hybrid, and gets half the size under 64 px.
    """
    share, patch = 0.5 if plain and image_size < 64 else 0.75, 16 if image_size >= 64 else 8
    return int(image_size * share) // patch * patch if image_size >= 32 else None


def small_side(image_size: int) -> int:
    """Pixels of a local crop: 96/224 of the image size, in steps of 16 px (4 under 64 px)."""
    step = 16 if image_size >= 64 else 4
    return max(step, round(image_size * 96 / 224 / step + 0.25) * step)


def papers_local_size(image_size: int, model: str) -> int | None:
    """98 px, seven patches of 14, for local crops of networks with such patches at 224 px; else None."""
    return 98 if image_size == 224 and backbones.options(model).get("patch") == 14 else None


@dataclass(frozen=True, kw_only=True)
class MultiCrop:
    """Options of a method with global and local crops; the defaults are DINO's, for ImageNet."""

    crop_size: int | None = None  # pixels of the global crops; None: the image size
    local_crops: int = 8
    local_size: int | None = None  # pixels; None: 96/224 of the image size, see `small_side`
    global_scale: tuple[float, float] = (0.4, 1.0)
    local_scale: tuple[float, float] = (0.05, 0.4)
    colour: float = 1.0  # strength of jitter; .5 suits small images
    blur: bool = True  # off under 64 px

    def __post_init__(self) -> None:
        range_within_one(self, "global_scale", "local_scale")
        at_least_zero(self, "local_crops")


def small_multi_crop(image_size: int, plain: bool) -> dict[str, Any]:
    """MultiCrop for 1,000 to 100,000 images on one machine: crops smaller than the image size."""
    tiny = image_size < 64
    return {
        "crop_size": smaller(image_size, plain), "local_crops": 0 if image_size < 96 else 4,
        "global_scale": (0.3, 1.0), "local_scale": (0.05, 0.3),
        "colour": 0.5 if tiny else 1.0, "blur": not tiny,
    }  # fmt: skip


def multi_crop(config: MultiCrop, image_size: int) -> tuple[Crop, ...]:
    """Two global crops with different blur and solarisation, and the local ones [Caron 2021, appendix E]."""
    crops = pair(config.crop_size or image_size, config.global_scale, config.colour, config.blur)
    if not config.local_crops:
        return crops
    colour = pair_colour(config.colour, 0.5 if config.blur else 0.0, 0.0)
    size = config.local_size or small_side(image_size)
    return (*crops, Crop(count=config.local_crops, size=size, scale=config.local_scale, colour=colour))
