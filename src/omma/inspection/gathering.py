"""The images that are explained: from one or several sources, prepared for the model."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from omma.core.protocols import Images, ImageSource, Preprocess
from omma.core.words import count
from omma.data.batches.preprocess import load_batch
from omma.data.sources import collection
from omma.data.sources.layout import LabelDepth
from omma.data.sources.values import input_notes
from omma.features.extract import with_channels


class Gathered(NamedTuple):
    """Readable images as the network's input."""

    pixels: Float[Tensor, "n c s s"]
    paths: tuple[str, ...]
    labels: tuple[str, ...]  # the class of each, "" where it is not known
    bad: tuple[tuple[str, str], ...]  # (path, reason) of those that cannot be read
    notes: tuple[str, ...]


def gather(
    sources: Sequence[ImageSource],
    preprocess: Preprocess,
    most: int,
    seed: int = 0,
    label_depth: LabelDepth | None = None,
) -> Gathered:
    """At most `most` images, in order: a seeded sample of all sources together where there are more.

    Raises ValueError if none can be read.
    """
    opened = [with_channels(collection.opened(each, label_depth), preprocess.channels) for each in sources]
    every = [(images, i) for images in opened for i in range(len(images))]
    rows = np.random.default_rng(seed).permutation(len(every))
    pixels, found, bad = [], [], []
    for row in rows if len(rows) > most else range(len(rows)):
        if len(found) == most:
            break
        images, index = every[row]
        tensor, good, reasons = load_batch(images, np.array([index]), preprocess)
        if good[0]:
            pixels.append(tensor)
            found.append(row)
        bad += [(images.path(i), reason) for i, reason in reasons]
    if not found:
        raise ValueError(collection.none_readable(" ".join(map(collection.named, sources)), len(every), bad))
    order = np.argsort(found)
    picked = [every[found[i]] for i in order]
    notes = [note for images in opened for note in input_notes(images, preprocess)]
    if len(every) > len(found) + len(bad):
        notes.append(f"{count(len(found), 'image')} of {len(every):,}, drawn by chance (--most, --seed)")
    return Gathered(
        pixels=torch.cat([pixels[i] for i in order]),
        paths=tuple(images.path(i) for images, i in picked),
        labels=tuple(_label(images, i) for images, i in picked),
        bad=tuple(bad),
        notes=tuple(dict.fromkeys(notes)),
    )


def _label(images: Images, i: int) -> str:
    if images.labels is None or images.labels[i] < 0:
        return ""
    return images.classes[images.labels[i]]


def captions(answers: Sequence[str], labels: Sequence[str]) -> list[str]:
    """What stands below each image: the model's answer, and the label where there is one."""
    return [
        " ".join(filter(None, (answer, f"(label: {label})" if label and answer else label)))
        for answer, label in zip(answers or [""] * len(labels), labels)
    ]
