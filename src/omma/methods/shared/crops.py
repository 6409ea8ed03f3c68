"""Plans of crops that several methods share."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from omma import backbones
from omma.core.checks import at_least_zero, one_of, range_within_one
from omma.core.protocols import Colour, Crop
from omma.core.recipe import added

BLURS: dict[str, dict[str, Any]] = {
    "gaussian": {},  # cut off at 3 sigma; what lies beyond the crop is its mirror image
    "taps9": {"blur_radius": 4},  # the same with nine taps: torchvision's with kernel_size=9
    "zeros": {"blur_border": "zero"},  # beyond the crop is black: convolutions of TensorFlow and JAX
    "pillow": {"blur_kernel": "boxes", "blur_border": "edge"},
}


@dataclass(frozen=True, kw_only=True)
class Photometric:
    """How colours are changed, beside how much; the defaults are torchvision's and Pillow's."""

    # of jitter's brightness, contrast, saturation and hue: drawn for each view, or this one
    jitter_order: Literal["random", "fixed"] = added("random", before="fixed")
    blur_as: Literal["pillow", "gaussian", "taps9", "zeros"] = added("pillow", before="gaussian")

    def __post_init__(self) -> None:
        one_of("method.jitter_order", self.jitter_order, ("random", "fixed"))
        one_of("method.blur_as", self.blur_as, tuple(BLURS))


PLAIN = Photometric(jitter_order="fixed", blur_as="gaussian")
SMALL: dict[str, Any] = {"jitter_order": "fixed", "blur_as": "gaussian"}  # options of small recipes


def pair_colour(strength: float, blur: float, solarise: float, how: Photometric = PLAIN) -> Colour:
    """BYOL's colour augmentation [Grill 2020, arXiv 2006.07733, appendix B], as in DINO and MoCo v3.

    strength: of the jitter, 1 in the papers. blur, solarise: probabilities.
    """
    return Colour(
        brightness=0.4 * strength, contrast=0.4 * strength, saturation=0.2 * strength, hue=0.1 * strength,
        jitter_p=0.8, jitter_order=how.jitter_order, grey_p=0.2, blur_p=blur, solarise_p=solarise,
        **BLURS[how.blur_as],
    )  # fmt: skip


def pair(
    size: int,
    scale: tuple[float, float],
    strength: float = 1.0,
    blur: bool | tuple[float, float] = True,
    how: Photometric = PLAIN,
    resample: Literal["bicubic", "bilinear"] = "bicubic",
) -> tuple[Crop, Crop]:
    """Two crops with different blur and solarisation. blur: False, or how likely it is in each."""
    likely = (blur and 1.0, blur and 0.1) if isinstance(blur, bool) else blur
    first, second = (
        pair_colour(strength, float(p), solarise, how) for p, solarise in zip(likely, (0.0, 0.2), strict=True)
    )
    crop = Crop(size=size, scale=scale, resample=resample)
    return replace(crop, colour=first), replace(crop, colour=second)


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
class MultiCrop(Photometric):
    """Options of a method with global and local crops; the defaults are DINO's, for ImageNet."""

    crop_size: int | None = None  # pixels of the global crops; None: the image size
    local_crops: int = 8
    local_size: int | None = None  # pixels; None: 96/224 of the image size, see `small_side`
    global_scale: tuple[float, float] = (0.4, 1.0)
    local_scale: tuple[float, float] = (0.05, 0.4)
    colour: float = 1.0  # strength of jitter; .5 suits small images
    blur: bool = True  # off under 64 px
    # how likely blur is in the first and second global crop, and in a local one
    blur_p: tuple[float, float, float] = added((1.0, 0.1, 0.5), before=(1.0, 0.1, 0.5))

    def __post_init__(self) -> None:
        super().__post_init__()
        range_within_one(self, "global_scale", "local_scale")
        if not all(0 <= p <= 1 for p in self.blur_p):
            raise ValueError(f"method.blur_p={self.blur_p}: probabilities lie in [0, 1]")
        at_least_zero(self, "local_crops")


def small_multi_crop(image_size: int, plain: bool) -> dict[str, Any]:
    """MultiCrop for 1,000 to 100,000 images on one machine: crops smaller than the image size."""
    tiny = image_size < 64
    return {
        "crop_size": smaller(image_size, plain), "local_crops": 0 if image_size < 96 else 4,
        "global_scale": (0.3, 1.0), "local_scale": (0.05, 0.3),
        "colour": 0.5 if tiny else 1.0, "blur": not tiny, "blur_p": (1.0, 0.1, 0.5), **SMALL,
    }  # fmt: skip


def multi_crop(config: MultiCrop, image_size: int) -> tuple[Crop, ...]:
    """Two global crops with different blur and solarisation, and the local ones [Caron 2021, appendix E]."""
    first, second, local = (p if config.blur else 0.0 for p in config.blur_p)
    size = config.crop_size or image_size
    crops = pair(size, config.global_scale, config.colour, (first, second), config)
    if not config.local_crops:
        return crops
    colour = pair_colour(config.colour, local, 0.0, config)
    size = config.local_size or small_side(image_size)
    return (*crops, Crop(count=config.local_crops, size=size, scale=config.local_scale, colour=colour))
