"""Collections of sounds: by tile, which networks are trained on, and by clip, which everything else sees."""

from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from omma.core.protocols import Images
from omma.core.words import count
from omma.data.sources.indexed import IndexedImages
from omma.data.sources.sound import ALL, Sounds, clip_of
from omma.data.sources.tables import FRAME, SEQUENCE


class Tiles(IndexedImages):
    """Equal parts of clips, each an image of 128 mels x 128 frames; tile 3 of a.wav is named a.wav#3."""

    kind = "sound"

    def _counted(self) -> str:
        clips = len({clip_of(path) for path in self._paths.to_pylist()})
        return f"{count(clips, 'clip')}, {count(len(self), 'tile')}"


class Clips(IndexedImages):
    """Whole sounds; each is read as one image, its tiles side by side."""

    kind = "sound"

    def _counted(self) -> str:
        assert self._where is not None
        return f"{count(len(self), 'clip')}, {count(int(self._where[:, -1].sum()), 'tile')}"


def tiles(clips: Clips) -> tuple[Tiles, Int[np.ndarray, "t"]]:
    """All tiles in order, and the row of the clip that each is of.

    Labels, splits, captions and columns are those of the clip. The columns `sequence` (the clip's path) and
    `frame` (the tile's number) are added where the table has none of these names.
    """
    assert clips._where is not None
    counts = clips._where[:, -1]
    owner = np.repeat(np.arange(len(clips)), counts)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    where = clips._where[owner]
    where[:, -2] = number
    of = clips._paths.take(pa.array(owner))
    names = [f"{clip}#{tile}" for clip, tile in zip(of.to_pylist(), number.tolist())]
    known = {} if clips.columns is None else _columns(clips.columns.take(pa.array(owner)))
    added: dict[str, Any] = {SEQUENCE: of, FRAME: pa.array(number)}
    columns = known | {name: column for name, column in added.items() if name not in known}
    return _made(Tiles, clips, owner, names, where, pa.table(columns)), owner


def means(rows: Float[np.ndarray, "t d"], owner: Int[np.ndarray, "t"]) -> Float[np.ndarray, "n d"]:
    """The mean of each clip's rows; owner: the clip of each row, in order, from 0."""
    sums = np.zeros((int(owner.max(initial=-1)) + 1, rows.shape[1]))
    np.add.at(sums, owner, rows)
    return (sums / np.bincount(owner)[:, None]).astype(np.float32)


def by_clip(images: Tiles) -> Clips:
    """The clips that the tiles are of, in the order of their first tiles; each is whole."""
    assert images._where is not None
    names = [clip_of(path) for path in images._paths.to_pylist()]
    rows: dict[str, int] = {}
    for row, name in enumerate(names):
        rows.setdefault(name, row)
    first = np.array(list(rows.values()), np.int64)
    added: dict[str, list[Any]] = {SEQUENCE: names, FRAME: images._where[:, -2].tolist()}  # by `tiles`
    known = {} if images.columns is None else _columns(images.columns)
    known = {name: column for name, column in known.items() if column.to_pylist() != added.get(name)}
    where = images._where[first]
    where[:, -2] = ALL
    columns = pa.table(known).take(pa.array(first)) if known else None
    return _made(Clips, images, first, [names[row] for row in first], where, columns)


def whole(images: Images) -> Images:
    """A collection of tiles by clip; any other as it is."""
    return by_clip(images) if isinstance(images, Tiles) and isinstance(images._store, Sounds) else images


def in_tiles(images: IndexedImages) -> IndexedImages:
    """Clips by tile; any other collection as it is."""
    return tiles(images)[0] if isinstance(images, Clips) else images


Kind = TypeVar("Kind", Tiles, Clips)


def _made(
    kind: type[Kind],
    images: Tiles | Clips,
    rows: np.ndarray,
    paths: list[str],
    where: np.ndarray,
    columns: pa.Table | None,
) -> Kind:
    """The collection of these rows of another, with paths, places and columns of its own."""
    of = images.subset(rows)
    made = kind(
        images._store,
        pa.array(paths, pa.large_string()),
        channels=images.channels,
        where=where,
        labels=of.labels,
        label_sets=of.label_sets,
        classes=of.classes,
        splits=of.splits,
        text=of.text,
        skipped=images.skipped,
        notes=images.notes,
        source=images.source,
        ranges=images.ranges,
        columns=columns,
    )
    made.split_name = images.split_name
    return made


def _columns(table: pa.Table) -> dict[str, Any]:
    return {name: table[name] for name in table.column_names}
