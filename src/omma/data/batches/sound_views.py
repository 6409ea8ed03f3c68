"""What of a plan of crops means something for a log-mel image, and what stands in for the rest."""

from collections.abc import Sequence
from dataclasses import replace

from omma.core.protocols import Crop, Images, Spectrum

NOTE = "sounds: no flips, no colours, no RandAugment; pauses, level, spectrum and noise in place of colours"
LEAST = 0.5  # share of a tile's area in a view of up to all of it
RATIO = (0.6, 1 / 0.6)  # of time to frequency: a voice that is higher, or speaks faster


def plan(images: Images, crops: Sequence[Crop]) -> tuple[Crop, ...]:
    """The plan for these images: for sounds without flips and without changes of colour.

    A flip reverses time, which makes another sound; hue, blur and RandAugment's operations are about pixels.
    A method that changes colours, so that its views differ, gets changes of level, spectrum and noise
    instead, and crops that leave enough to know a sound by (docs/sounds.md). Rectangles erased (as
    SpecAugment's masks) stay.
    """
    if getattr(images, "kind", "image") != "sound":
        return tuple(crops)
    return tuple(map(_of_sounds, crops))


def _of_sounds(crop: Crop) -> Crop:
    plain = replace(crop, flip_p=0.0, augment=None, colour=None)
    if crop.colour is None:
        return plain
    low, high = crop.scale
    scale = (max(low, LEAST), high) if high == 1 else crop.scale
    return replace(plain, spectrum=Spectrum(), scale=scale, ratio=RATIO)


def notes(images: Images) -> tuple[str, ...]:
    """A line that says so."""
    return (NOTE,) if getattr(images, "kind", "image") == "sound" else ()
