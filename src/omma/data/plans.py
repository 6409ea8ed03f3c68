"""Plans of crops that several methods want."""

from omma.protocols import Colour, Crop


def pair_colour(strength: float, blur: float, solarise: float) -> Colour:
    """BYOL's colours [Grill 2020, arXiv 2006.07733, appendix B], which DINO and MoCo v3 took over.

    strength: of the jitter, 1 in the papers. blur, solarise: probabilities.
    """
    return Colour(
        brightness=0.4 * strength, contrast=0.4 * strength, saturation=0.2 * strength, hue=0.1 * strength,
        jitter_p=0.8, grey_p=0.2, blur_p=blur, solarise_p=solarise,
    )  # fmt: skip


def pair(
    size: int, scale: tuple[float, float], strength: float = 1.0, blur: bool = True
) -> tuple[Crop, Crop]:
    """Two crops with unlike blur and solarisation."""
    first, second = (
        pair_colour(strength, p if blur else 0.0, solarise) for p, solarise in ((1.0, 0.0), (0.1, 0.2))
    )
    return Crop(size=size, scale=scale, colour=first), Crop(size=size, scale=scale, colour=second)


def small_side(image_size: int) -> int:
    """Pixels of a local crop: 96/224 of what the network will see, to 16 px (4 under 64 px)."""
    step = 16 if image_size >= 64 else 4
    return max(step, round(image_size * 96 / 224 / step + 0.25) * step)


def multi_crop(
    image_size: int,
    *,
    crop_size: int | None,
    local_size: int | None,
    local_crops: int,
    global_scale: tuple[float, float],
    local_scale: tuple[float, float],
    strength: float = 1.0,
    blur: bool = True,
) -> tuple[Crop, ...]:
    """Two global crops and `local_crops` small ones [Caron 2021, section 3.1 and appendix E].

    crop_size: of the globals; None: `image_size`, which the network will see. local_size: None: 96/224 of
    `small_side` of that.
    """
    crops = pair(crop_size or image_size, global_scale, strength, blur)
    if not local_crops:
        return crops
    colour = pair_colour(strength, 0.5 if blur else 0.0, 0.0)
    size = local_size or small_side(image_size)
    return (*crops, Crop(count=local_crops, size=size, scale=local_scale, colour=colour))
