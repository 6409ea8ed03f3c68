"""What belongs together in a run: the frames of a sequence, and the fields beside an image."""

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Num

from omma.core.protocols import Field, Frames, Tracks
from omma.core.words import count
from omma.data.batches.frames import Sampler
from omma.data.sources import fields, sequences
from omma.data.sources import groups as grouping
from omma.data.sources.groups import Groups
from omma.data.sources.indexed import IndexedImages
from omma.data.sources.sequences import Sequences


class Related(NamedTuple):
    """Of the images to train on."""

    sampler: Sampler | None  # draws the frames of a sample
    fields: Mapping[str, Num[np.ndarray, "n d"]]
    tracks: Tracks | None  # what the method is built with

    @property
    def digest(self) -> str | None:
        """A hash of all that was read of columns; None where nothing was."""
        if self.tracks is None:
            return None
        arrays = [self.tracks.sequence, self.tracks.frame, *self.fields.values()]
        content = hashlib.sha256()
        for array in arrays:
            content.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
        return content.hexdigest()[:16]


def read(images: IndexedImages, frames: Frames | None, needed: tuple[Field, ...]) -> Related:
    """Sequences and fields, as far as a method takes them; ValueError for what a table lacks."""
    values = {field.name: fields.read(images, field) for field in needed}
    present = {name: value for name, value in values.items() if value is not None}
    if frames is None:
        return Related(None, present, Tracks(None, None, present) if needed else None)
    of = sequences.read(images)
    return Related(Sampler(of.sequence, of.frame, frames), present, Tracks(of.sequence, of.frame, present))


def refuse(images: IndexedImages, frames: Frames | None, needed: tuple[Field, ...]) -> None:
    """Raise ValueError for what a table lacks, before any image is decoded."""
    read(images, None, needed)
    if frames is not None:
        usable(images, sequences.read(images), np.arange(len(images)), frames)


def groups(images: IndexedImages, group: str | None, of: Sequences | None) -> Groups | None:
    """What is held out together: by the column, or what a method takes for sequences where it has none."""
    found = grouping.of(images, group)
    if found is None and group is None and of is not None:
        return Groups(grouping.FOLDER, of.sequence)
    return found


def usable(
    images: IndexedImages, of: Sequences, rows: Int[np.ndarray, "n"], frames: Frames
) -> tuple[Int[np.ndarray, "m"], list[str]]:
    """The rows that go together with others among them, and notes on the sequences and the rest.

    of: the sequences of all images. Raises ValueError where there are none.
    """
    together = Sampler(of.sequence[rows], of.frame[rows], frames).usable()
    distance = f"{frames.least:g} or more" if frames.most is None else f"{frames.least:g} to {frames.most:g}"
    wanted = f"{frames.count} frames of one sequence, {distance} apart"
    if not together.any():
        raise ValueError(
            f"{images.source}: no image is among {wanted} ({of.note}): give a table with the columns path, "
            "sequence and frame (docs/sequences.md)"
        )
    notes = [of.note]
    if lacking := int((~together).sum()):
        are = "is its own other frame" if frames.alone else "left out"
        notes.append(f"{are}, not among {wanted}: {count(lacking, 'image')}")
    return (rows if frames.alone else rows[together]), notes
