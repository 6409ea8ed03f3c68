"""What remains of a collection without the images that findings name: lists or copies; nothing is deleted.

An image of the test part always stays: a test set that was cleaned by a rule no longer measures what it did.
"""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from omma.core.protocols import BadImage, Images
from omma.core.words import count
from omma.curation.findings import KINDS, Finding, label_of, split_of
from omma.data.sources import remote
from omma.data.sources.columns import flat
from omma.data.sources.indexed import IndexedImages
from omma.data.sources.label_sets import of
from omma.data.sources.readers import Files
from omma.data.sources.tables import PATHS, is_known
from omma.features import copies, records
from omma.features.table import as_text

TABLE = "labels.csv"  # beside copies: a collection's folder is read with it


def check_kinds(kinds: Collection[str]) -> None:
    """Raise ValueError for a finding that does not exist."""
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ValueError(f"--remove {unknown[0]}: no such finding; choose among {', '.join(KINDS)}")


def removed(images: Images, findings: Sequence[Finding], kinds: Collection[str]) -> dict[int, Finding]:
    """The images to remove, each with the first of its findings of these kinds; none of the test part."""
    chosen: dict[int, Finding] = {}
    for each in findings:
        if each.row >= 0 and each.kind in kinds and each.removable and split_of(images, each.row) != "test":
            chosen.setdefault(each.row, each)
    return dict(sorted(chosen.items()))


def rest(images: Images, out: Collection[int]) -> Int[np.ndarray, "m"]:
    """The other images."""
    return np.setdiff1d(np.arange(len(images)), np.fromiter(out, np.int64, len(out)))


# ---------------------------------------------------------------- lists
def lists_of(out: Path) -> tuple[Path, Path]:
    """Names of both lists beside the table of findings."""
    return out.with_name(f"{out.stem}-keep.csv"), out.with_name(f"{out.stem}-remove.csv")


def write_lists(out: Path, images: Images, gone: dict[int, Finding]) -> tuple[list[Path], list[str]]:
    """Write NAME-keep.csv, a table that commands take as IMAGES, and NAME-remove.csv; returns notes, too.

    Files are named by absolute paths, members of archives and rows of arrays as the collection names them.
    """
    keep, remove = lists_of(out)
    rows = rest(images, gone)
    root = folder_of(images)
    paths = [_located(images.path(int(row)), root) for row in rows]
    _write(keep, manifest(images, rows, paths))
    names = [_located(images.path(row), root) for row in gone]
    columns = {
        "path": pa.array(names, pa.string()),
        "finding": pa.array([each.kind for each in gone.values()], pa.string()),
        "related": pa.array([each.related or None for each in gone.values()], pa.string()),
    }
    _write(remove, pa.table(columns))
    if root is not None:
        return [keep, remove], []
    note = (
        f"{keep.name} names members of an archive, or rows of an array, which a table cannot be read with: "
    )
    return [keep, remove], [note + "unpack the archive beside it, or use --apply copy DIR"]


def folder_of(images: Images) -> str | None:
    """The folder that a collection's paths are relative to; None for archives and arrays."""
    store = images.identity.store if isinstance(images, IndexedImages) else None
    return store.root if isinstance(store, Files) else None


def _located(path: str, root: str | None) -> str:
    located = (
        path
        if root is None or remote.is_remote(path)
        else str(Path(root, remote.local_path(path)).absolute())
    )
    return as_text(located)


def manifest(images: Images, rows: Int[np.ndarray, "m"], paths: Sequence[str]) -> pa.Table:
    """path, label or labels, split, and what else the collection's table knows of these images."""
    columns: dict[str, pa.Array | pa.ChunkedArray] = {"path": pa.array(paths, pa.string())}
    sets = of(images)
    if sets is not None:
        named = [None if (sets[row] < 0).all() else label_of(images, row) or ";" for row in rows.tolist()]
        columns["labels"] = pa.array(named, pa.string())
    elif images.labels is not None:
        columns["label"] = pa.array([label_of(images, row) or None for row in rows.tolist()], pa.string())
    if images.splits is not None:
        columns["split"] = pa.array(images.splits[rows].tolist(), pa.string())
    text, others = getattr(images, "text", None), getattr(images, "columns", None)
    if text is not None:
        captions = text.take(pa.array(rows)).to_pylist()
        for k in range(max((len(each or ()) for each in captions), default=0)):
            cells = [each[k] if each and k < len(each) else None for each in captions]
            columns[f"caption{k}"] = pa.array(cells, pa.string())
    if others is not None:
        for name in others.column_names:
            if name not in columns and name not in PATHS and not is_known(name):
                columns |= flat(name, others[name].take(pa.array(rows)))
    return pa.table(columns)


def _write(file: Path, table: pa.Table) -> None:
    with records.writer(file, table.schema) as append:
        append(table)


# ---------------------------------------------------------------- copies
def copy(
    out: Path, images: Images, rows: Int[np.ndarray, "m"], progress: Callable[[int, int], None] | None = None
) -> list[str]:
    """Copy the files of these images into `out`, in folders for split and class, with a table beside them.

    `out` appears when it is complete. Returns notes: files that could not be read are left out.
    """
    done, paths, left = list[int](), list[str](), list[str]()
    with copies.folder(out, images, "--apply copy") as place:
        for number, row in enumerate(rows.tolist(), 1):
            folders = split_of(images, row), "" if of(images) is not None else label_of(images, row)
            try:
                paths += place([row], [tuple(filter(None, folders))])
                done.append(row)
            except BadImage as error:
                left.append(f"{images.path(row)}: {error}")
            if progress:
                progress(number, len(rows))
        _write(place.root / TABLE, manifest(images, np.array(done, np.int64), paths))
    return [f"not copied: {count(len(left), 'image')} (the first: {left[0]})"] if left else []


def application(apply: str | Sequence[str] | None) -> tuple[str | None, Path | None]:
    """What `--apply` asks for: ("list", None), ("copy", a folder) or nothing. Raises ValueError."""
    words = [apply] if isinstance(apply, str) else [*map(str, apply or ())]
    if not words:
        return None, None
    if words == ["list"]:
        return "list", None
    if words[0] == "copy" and len(words) == 2:
        return "copy", Path(words[1])
    if words[0] in ("delete", "move", "remove"):
        raise ValueError(
            f"--apply {words[0]}: omma deletes and moves no images: `copy DIR` leaves yours in place"
        )
    raise ValueError(f"--apply {' '.join(words)}: give `list`, or `copy DIR`, after IMAGES")
