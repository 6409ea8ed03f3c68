"""What of a plan of crops means something for a log-mel image."""

from collections.abc import Sequence
from dataclasses import replace

from omma.core.protocols import Crop, Images

NOTE = "sounds: no flips, no colour, no RandAugment; views are crops in time and frequency"


def plan(images: Images, crops: Sequence[Crop]) -> tuple[Crop, ...]:
    """The plan for these images: for sounds without flips and without changes of colour.

    A flip reverses time, which makes another sound; brightness, hue, blur and RandAugment's operations are
    about pixels. Crops, and rectangles erased (as SpecAugment's masks), stay.
    """
    if getattr(images, "kind", "image") != "sound":
        return tuple(crops)
    return tuple(replace(crop, flip_p=0.0, augment=None, colour=None) for crop in crops)


def notes(images: Images) -> tuple[str, ...]:
    """A line that says so."""
    return (NOTE,) if getattr(images, "kind", "image") == "sound" else ()
