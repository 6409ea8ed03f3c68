"""A run's images: opened, restricted to those that the method can use, and some held out."""

import contextlib
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from omma.core import dist
from omma.core.protocols import BadImage, Frames, Needs
from omma.core.words import count
from omma.data.sources import captions, collection, composed, label_sets, selection, sequences
from omma.data.sources import groups as grouping
from omma.data.sources.check import checked
from omma.data.sources.clips import in_tiles
from omma.data.sources.groups import Groups
from omma.data.sources.indexed import IndexedImages
from omma.data.sources.labels import Annotations
from omma.pretraining import few_labels, monitor, related, requirements
from omma.pretraining.choose import Facts
from omma.pretraining.events import Event, Note, Stage
from omma.pretraining.request import Request, Supervision, ignore


@dataclass(frozen=True, kw_only=True)
class Data:
    """The images of a run; rows count those of `source`, sorted."""

    source: IndexedImages
    rows: np.ndarray  # that the method can use
    training: np.ndarray  # rows of them to train on
    sample: np.ndarray  # rows to read health on: held out of training if there are enough images
    notes: tuple[str, ...]
    held_out_notes: tuple[str, ...] = ()
    groups: Groups | None = None  # of all rows of `source`: what belongs together is held out together

    @property
    def held_out(self) -> bool:
        """Are the images that health is read on kept from training?"""
        return len(self.training) < len(self.rows)

    @property
    def stem(self) -> str:
        """The source's name without its folder and ending."""
        return Path(self.source.source).stem or "images"

    @property
    def part(self) -> str:
        """Which images of the source can be trained on: "train" or "all"."""
        return "all" if len(self.rows) == len(self.source) else "train"


def open_source(request: Request) -> IndexedImages:
    """List the images, decoding none; raises ValueError if they lack what the named method requires."""

    def check(annotations: Annotations | IndexedImages) -> None:
        several = annotations.label_sets is not None
        classes = None if annotations.labels is None and not several else annotations.classes
        requirements.refuse(
            request,
            classes=classes,
            several=several,
            captions=annotations.text is not None,
            notes=annotations.notes,
        )

    columns, images = request.supervision.label_columns, request.images
    template = requirements.caption_of(request)
    later = bool(columns) or template is not None  # labels or captions are made of the open collection
    if template is not None:
        composed.template(template)  # raises before a large folder is listed
    if not isinstance(images, IndexedImages):
        with dist.sequentially():
            images = collection.indexed(
                images,
                check=(lambda annotations: None) if later else check,
                tell=lambda text: request.listen(Note(text)),
                label_depth=request.label_depth,
            )
        if not later:
            return images
    images = selection.labelled_by(in_tiles(images), columns)
    if template is not None:
        images = composed.compose(images, template)
    check(images)
    return images


def prepare(
    opened: IndexedImages,
    needs: Needs,
    seed: int,
    listen: Callable[[Event], None] = ignore,
    supervision: Supervision | None = None,
    frames: Frames | None = None,
    group: str | None = None,
) -> Data:
    """Leave out what cannot be decoded or lacks a label, caption or other frame, and hold out a sample.

    group: the column of what belongs together (`groups.of`), and is held out together.
    """
    related.refuse(opened, frames, needs.fields)
    grouping.of(opened, group)  # a wrong name is refused before images are decoded

    def progress(done: int, total: int) -> None:
        listen(Stage("checking images", done, total))

    with dist.sequentially():
        source = checked(opened, progress=progress)
    if dist.is_distributed():
        dist.require_same("the images", source.fingerprint)
    rows, notes = np.arange(len(source)), list(source.notes)
    steps: list[tuple[bool, Callable[[IndexedImages, np.ndarray], tuple[np.ndarray, list[str]]]]] = [
        (True, _train_part), (needs.text, _captioned), (needs.labels, _labelled),
    ]  # fmt: skip
    for applies, select in steps:
        if applies:
            rows, messages = select(source, rows)
            notes += messages
    of = None if frames is None else sequences.read(source)
    if frames is not None and of is not None:
        rows, messages = related.usable(source, of, rows, frames)
        notes += messages
    groups = related.groups(source, group, of)
    if needs.holds_out:
        part = few_labels.divide(source, rows, supervision or Supervision(), seed, groups)
        return Data(
            source=source,
            rows=np.union1d(part.learned, part.held_out),
            training=part.learned,
            sample=part.held_out if len(part.held_out) else part.learned[: monitor.HELD_OUT],
            groups=groups,
            notes=(*notes, *part.notes),
            held_out_notes=(part.held_out_note,),
        )
    training, sample = monitor.hold_out(rows, seed, None if groups is None else groups.codes[rows])
    if frames is not None and of is not None and len(training) < len(rows):
        training, _ = related.usable(source, of, training, frames)
    if len(training) == len(rows):
        few = "images" if groups is None or len(rows) < monitor.ENOUGH else f"groups by {groups.name}"
        notes.append(f"too few {few} to hold some out: health is read on training images")
    elif groups is not None:
        notes.append(_held_out_by(groups, training, sample, monitor.hold_out(rows, seed)))
    return Data(source=source, rows=rows, training=training, sample=sample, groups=groups, notes=tuple(notes))


def _held_out_by(
    groups: Groups, training: np.ndarray, sample: np.ndarray, by_image: tuple[np.ndarray, np.ndarray]
) -> str:
    """How many groups are held out, and what holding out by image would have leaked; all: rows."""
    number, every = groups.of_rows(sample).number, groups.of_rows(np.union1d(training, sample)).number
    leaking = groups.leaking(*by_image)
    return (
        f"held out by {groups.name}: {number:,} of {every:,}; by image {leaking:.0%} of the held-out images "
        f"would have others of their {groups.name} in training"
    )


def facts(images: IndexedImages, device: str, source: IndexedImages) -> Facts:
    """What method, model and sizes are chosen by; images: those to train on."""
    return Facts(
        images=len(images),
        shorter_side=_shorter_side(images),
        device=device,
        labels=source.labels is not None,
        captions=source.text is not None,
    )


def _train_part(images: IndexedImages, rows: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """All rows, or the train part of a data set that is split."""
    splits = images.splits
    if splits is None or not ((splits == "train").any() and (splits == "test").any()):
        return rows, []
    train = rows[splits[rows] == "train"]
    return train, [f"only the train part is used: {len(train):,} of {len(images):,} images"]


def _labelled(images: IndexedImages, rows: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """The rows with a label, and how many have none."""
    if images.label_sets is not None:
        labelled = rows[~label_sets.unlabelled(images.label_sets[rows])]
    else:
        assert images.labels is not None
        labelled = rows[images.labels[rows] >= 0]
    if not len(labelled):
        raise ValueError(f"{images.source}: none of the images to train on has a label; see docs/input.md")
    left_out = len(rows) - len(labelled)
    return labelled, [f"left out, without a label: {count(left_out, 'image')}"] if left_out else []


def _captioned(images: IndexedImages, rows: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """The rows with a usable caption, and what became of the others."""
    text = images.subset(rows).text
    assert text is not None
    fit, _ = captions.fit(text)
    if not fit.has.any():
        why = "; ".join(fit.notes()[1:]) or "they are missing"
        raise ValueError(f"{images.source}: no image has a usable caption ({why}); see docs/input.md")
    return rows[fit.has], fit.notes()


def _shorter_side(images: IndexedImages) -> int:
    """Median over a sample, in pixels; in large collections an image may turn out to be bad only here."""
    sides = []
    for i in range(0, len(images), max(1, len(images) // 16)):
        with contextlib.suppress(BadImage):
            sides.append(min(images.read(i).shape[:2]))
    if not sides:
        raise ValueError(f"{images.source}: none of a sample of its images can be read; check the files")
    return int(statistics.median(sides))
