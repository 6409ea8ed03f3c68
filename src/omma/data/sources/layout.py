"""What the names of folders say: which part of the collection an image belongs to, and which class.

Pure functions of folder names and of the number of images directly in each.
"""

import itertools
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import pyarrow as pa

from omma.data.sources.labels import SPLITS, Annotations
from omma.data.sources.layout_notes import FOLD, Counts, Path, merged, no_classes, unlabelled, where

LabelDepth = int | Literal["path"]

# train, train2017, test1, training_set, val_images, seg_train: more than the plain word counts only where
# both sides are named alike
_PART = re.compile(
    rf"(?P<before>.*[-_ ])?(?P<word>{'|'.join(sorted(SPLITS, key=len, reverse=True))})"
    r"(?:[-_ ]?(?:set|images?|imgs?|data|split|\d{1,4}))?",
    re.IGNORECASE,
)
_UNLABELLED = re.compile(r"unlabell?ed(?:[-_ ]?(?:set|images?|data|\d{1,4}))?", re.IGNORECASE)
# folders that tell files apart and no classes
_KINDS = frozenset(
    "image images img imgs picture pictures photo photos jpg jpeg jpegs png data frames mask masks".split()  # noqa: SIM905
)


@dataclass
class Layout:
    """Class (None: unlabelled) and side ("train", "test"; None: no parts) of each folder's images."""

    classes: dict[Path, str | None] = field(default_factory=dict)
    sides: dict[Path, str] | None = None
    notes: list[str] = field(default_factory=list)


def from_folders(
    folders: Sequence[str], counts: Sequence[int], depth: LabelDepth | None = None
) -> Annotations:
    """Labels and parts of images in folders that hold `counts` images each, in the images' order.

    `depth` says which folder names the class, as `read_layout` does. Raises ValueError.
    """
    paths = [tuple(unicodedata.normalize("NFC", folder).split("/")) if folder else () for folder in folders]
    totals: Counter[Path] = Counter()
    for path, n in zip(paths, counts, strict=True):
        totals[path] += n
    layout = read_layout(totals, depth)
    names = sorted({name for name in layout.classes.values() if name is not None})
    code = {name: k for k, name in enumerate(names)} | {None: -1}
    labels = np.array([code[layout.classes.get(path)] for path in paths], np.int64)
    sides = None if layout.sides is None else np.array([layout.sides[path] for path in paths], "U5")
    return Annotations(
        labels=np.repeat(labels, counts) if names else None,
        classes=tuple(names),
        splits=None if sides is None else np.repeat(sides, counts),
        notes=tuple(layout.notes),
    )


def relabelled(annotations: Annotations, paths: pa.LargeStringArray, depth: LabelDepth) -> Annotations:
    """The annotations with labels by the folders at `depth`; a table's split and captions stay.

    Raises ValueError where no image has such a folder.
    """
    parents = (path.split("/")[:-1] for path in paths.to_pylist())
    folders = (
        "/".join(name for name in parent if not name.endswith(".tar")) for parent in parents
    )  # of shards
    runs = [(folder, sum(1 for _ in same)) for folder, same in itertools.groupby(folders)]
    names, counts = [name for name, _ in runs], [n for _, n in runs]
    read, usual = from_folders(names, counts, depth), from_folders(names, counts)
    from_names = usual.splits is not None and np.array_equal(annotations.splits, usual.splits)  # pyright: ignore
    if annotations.splits is not None and not from_names:
        read = replace(read, splits=annotations.splits)
    return replace(read, text=annotations.text)


def read_layout(counts: Counts, depth: LabelDepth | None = None) -> Layout:
    """Parts and classes of folders with images, from their paths and the number of images directly in each.

    A level of folders that are all named train, test, val or the like, or which has both sides, gives the
    part; what lies beside it belongs to train. In each part, without folders that all bear the same name or
    tell no classes apart (images, fold1), the folder that holds an image names its class; where such folders
    lie within one another, the level at which most images lie does. There must be at least two classes, with
    two images each on average.

    depth: the class is the name of the folder at this level below the source (1 is the first, -1 the one
    that holds the image), or, for "path", all names but the part's. Raises ValueError where no image has one.
    """
    layout = Layout()
    level = _part_level(counts, depth)
    part_of = _parts(counts, level)
    if level is not None:
        layout.sides = {path: _side(part or "train") for path, part in part_of.items()}
        if outside := [path for path, part in part_of.items() if part is None]:
            layout.notes.append(f"{where(counts, outside)} outside of the parts' folders: taken as train")
    if depth is not None:
        layout.classes = _explicit(counts, depth, level)
    else:
        _read_classes(layout, counts, level, part_of)
    return layout


# ---------------------------------------------------------------- parts
def _part_level(counts: Counts, depth: LabelDepth | None) -> int | None:
    """The level whose folders are the parts of the collection; the one that `depth` means is none."""
    levels = [
        level
        for level in range(max(map(len, counts), default=0))
        if not isinstance(depth, int) or all(_index(path, depth) != level for path in counts)
    ]
    for level in levels:
        if all(len(path) > level for path in counts):
            names = {path[level].lower() for path in counts}
            if all(map(_plain, names)) and any(name in SPLITS for name in names):
                return level
    for level in levels:
        parts = _both_sides(path[level] for path in counts if len(path) > level)
        inside = sum(n for path, n in counts.items() if len(path) > level and path[level] in parts)
        if 2 * inside > sum(counts.values()):
            return level
    return None


def _plain(name: str) -> bool:
    return name.lower() in SPLITS or _UNLABELLED.fullmatch(name) is not None


def _both_sides(names: Iterable[str]) -> set[str]:
    """The names of parts among the names, if those of train and test are alike but for these words."""
    alike: defaultdict[str, set[str]] = defaultdict(set)
    for name in set(names):
        if match := _PART.fullmatch(name):
            alike[(match["before"] or "").lower()].add(name)
    pairs = (parts for parts in alike.values() if {_side(name) for name in parts} == {"train", "test"})
    return set().union(*pairs)


def _side(part: str) -> str:
    match = _PART.fullmatch(part)
    return SPLITS[match["word"].lower()] if match else "train"  # images without labels are to train on


def _parts(counts: Counts, level: int | None) -> dict[Path, str | None]:
    """The part's folder of each path; "" for all without parts, None for what lies outside of them."""
    if level is None:
        return dict.fromkeys(counts, "")
    names = {path[level] for path in counts if len(path) > level}
    parts = {name for name in names if _plain(name)} | _both_sides(names)
    return {path: path[level] if len(path) > level and path[level] in parts else None for path in counts}


def _without(path: Path, level: int | None) -> Path:
    return path if level is None else path[:level] + path[level + 1 :]


# ---------------------------------------------------------------- classes
def _explicit(counts: Counts, depth: LabelDepth, level: int | None) -> dict[Path, str | None]:
    """The class of each path where the user says which folder names it."""
    deepest = max(map(len, counts), default=0)
    if depth == 0 or abs(1 if depth == "path" else depth) > deepest:
        deep = f"lie at most {deepest} folders deep" if deepest else "lie in no folder"
        raise ValueError(
            f"--label-depth {depth}: the images {deep}; 1 is the first folder, -1 that which holds the image"
        )
    if depth == "path":
        rests = {path: _without(path, level) for path in counts}
        distinct = {rest for rest in rests.values() if rest}
        same = itertools.takewhile(lambda names: len(set(names)) == 1, zip(*distinct, strict=False))
        wrap = len(list(same)) if len(distinct) > 1 else 0
        return {path: "/".join(rest[wrap:]) or None for path, rest in rests.items()}
    return {path: None if (k := _index(path, depth)) is None else path[k] for path in counts}


def _index(path: Path, depth: int) -> int | None:
    k = depth - 1 if depth > 0 else len(path) + depth
    return k if 0 <= k < len(path) else None


def _read_classes(layout: Layout, counts: Counts, level: int | None, part_of: dict[Path, str | None]) -> None:
    """Read the classes of each part; those of the part that has most decide what is a class in the others."""
    rests = _by_part(counts, level, part_of) or {"": {}}
    readings = {part: _class_folders(_totals(counts, rests[part])) for part in rests}
    readings = _shared_level(readings)
    if all(len(set(reading.values())) < 2 for reading in readings.values()):  # train/x and test/y, say
        rests = {"": {path: rest for part in rests.values() for path, rest in part.items()}}
        readings = {"": _class_folders(_totals(counts, rests[""]))}
    number = {part: len({folder[-1] for folder in reading.values()}) for part, reading in readings.items()}
    first = max(sorted(number), key=lambda part: (number[part], _side(part) == "train"))
    known = {folder[-1] for folder in readings[first].values()}
    for part in rests:
        if not known & {folder[-1] for folder in readings[part].values()}:
            readings[part] = _known_folders(rests[part].values(), known)
    classes = {
        path: readings[part][rest][-1]
        for part in rests
        for path, rest in rests[part].items()
        if rest in readings[part]
    }
    if len(known) >= 2 and sum(counts[path] for path in classes) >= 2 * len(set(classes.values())):
        layout.classes = dict(classes)
        layout.notes += [*unlabelled(counts, part_of, classes), *merged(readings)]
    else:
        layout.notes += no_classes(counts, rests, classes)


def _by_part(
    counts: Counts, level: int | None, part_of: dict[Path, str | None]
) -> dict[str, dict[Path, Path]]:
    """For each part its paths, and what is left of them without the part; all at once for CLASS/train."""
    inner = level is not None and len({path[:level] for path, part in part_of.items() if part}) > 1
    rests: defaultdict[str, dict[Path, Path]] = defaultdict(dict)
    for path in counts:
        part = part_of[path]
        if part is None and inner:  # cat/1.jpg beside cat/train/2.jpg
            rests[""][path] = path
        elif part is not None and not _UNLABELLED.fullmatch(part):
            rests["" if inner else part][path] = _without(path, level)
    return rests


def _totals(counts: Counts, rests: dict[Path, Path]) -> Counter[Path]:
    totals: Counter[Path] = Counter()
    for path, rest in rests.items():
        totals[rest] += counts[path]
    return totals


def _class_folders(counts: Counts) -> dict[Path, Path]:
    """The folder that names the class of the images in each folder; none for images without a class."""
    trimmed = _telling(counts)
    totals = _totals(counts, trimmed)
    outside = totals.pop((), 0)
    if outside > sum(totals.values()):
        return {}
    class_of = {path: path for path in totals}
    if any(path[:k] in totals for path in totals for k in range(1, len(path))):
        by_level: Counter[int] = Counter()
        for path, n in totals.items():
            by_level[len(path)] += n
        level = max(by_level, key=lambda level: (by_level[level], level))
        class_of = {path: path[:level] for path in totals if len(path) >= level}
    return {path: class_of[rest] for path, rest in trimmed.items() if rest in class_of}


def _shared_level(readings: dict[str, dict[Path, Path]]) -> dict[str, dict[Path, Path]]:
    """The readings, with classes at the level that the parts share: train/cat/clip1 beside test/cat/clip7."""
    used = [set(reading.values()) for reading in readings.values() if reading]
    for up in range(min((len(folder) for folders in used for folder in folders), default=0)):
        names = [{folder[len(folder) - 1 - up] for folder in folders} for folders in used]
        shared, most = len(set().union(*names)) < sum(map(len, names)), max(names, key=len)
        if shared and (not up or (len(most) > 1 and all(each <= most for each in names))):
            return {
                part: {path: folder[: len(folder) - up] for path, folder in reading.items()}
                for part, reading in readings.items()
            }
    return readings


def _telling(paths: Iterable[Path]) -> dict[Path, Path]:
    """The paths without outer and inner folders that tell no classes apart, and without those unlabelled."""
    trimmed = {path: path for path in paths if not any(map(_UNLABELLED.fullmatch, path))}
    while True:
        if _alike(path[0] for path in trimmed.values() if path):
            trimmed = {path: rest[1:] for path, rest in trimmed.items()}
        elif _alike(path[-1] for path in trimmed.values() if len(path) > 1):
            trimmed = {path: rest[:-1] if len(rest) > 1 else rest for path, rest in trimmed.items()}
        else:
            return trimmed


def _alike(names: Iterable[str]) -> bool:
    """Whether the names tell no classes apart; False without names."""
    distinct = set(names)
    return len(distinct) == 1 or (
        len(distinct) > 1 and all(name.lower() in _KINDS or FOLD.fullmatch(name) for name in distinct)
    )


def _known_folders(paths: Iterable[Path], known: set[str]) -> dict[Path, Path]:
    """The innermost folder of each path that bears the name of a known class."""
    folders = {}
    for path in paths:
        if at := [k for k, name in enumerate(path) if name in known]:
            folders[path] = path[: at[-1] + 1]
    return folders
