"""List the images and other files of a folder, archive, manifest or array file, without decoding."""

import glob as globbing
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from omma.core.errors import line
from omma.core.protocols import BadImage
from omma.core.words import count
from omma.data.sources import label_sets, val_annotations
from omma.data.sources.formats import HEAD
from omma.data.sources.labels import Annotations
from omma.data.sources.layout import from_folders
from omma.data.sources.manifest import read_manifest
from omma.data.sources.matching import beside, from_beside, is_table
from omma.data.sources.members import Member, tar_members, zip_members
from omma.data.sources.names import (
    NO_IMAGE,
    NO_TEXT,
    PACKED_VIDEO,
    VIDEO,
    is_hidden,
    is_text,
    no_access,
    printable,
    why_not,
)
from omma.data.sources.readers import Archive, Arrays, Files, Store, read_arrays
from omma.data.sources.values import Ranges


@dataclass(kw_only=True)
class Listing:
    """The images of a source; rows of all columns correspond."""

    store: Store
    paths: pa.LargeStringArray
    where: np.ndarray | None = None  # int64 [n, k]: the image's position, as the store defines it
    annotations: Annotations = field(default_factory=Annotations)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    times: dict[str, int] = field(default_factory=dict)  # modification time of each folder, ns
    started: int = 0  # when listing began, ns
    channels: int = 0  # known once images have been decoded
    ranges: Ranges = field(default_factory=dict)  # of their values, by type, likewise


def _head(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(HEAD)


# ---------------------------------------------------------------- sources
def list_folder(root: str) -> Listing:
    """Every image below `root`, in one pass of scandir, without a stat call for each file."""
    started = time.time_ns()
    files: dict[str, list[str]] = {}
    skipped, times, visited = [], {}, {os.path.realpath(root)}
    todo = [""]
    while todo:
        folder = todo.pop()
        names: list[str] = []
        try:
            times[folder] = os.stat(os.path.join(root, folder)).st_mtime_ns
            _scan(root, folder, visited, names, todo, skipped)
        except OSError as error:
            if not folder:
                raise ValueError(f"{root}: {error.strerror}; give a folder that you may read") from None
            skipped.append((folder + "/", no_access(error)))
        if names:
            files[folder] = sorted(names)
    if not files:
        files, skipped = _videos(skipped)
    folders = sorted(files)
    paths: list[str] = []
    for folder in folders:
        paths += [f"{folder}/{name}" for name in files[folder]] if folder else files[folder]
    column = pa.array(paths, pa.large_string())
    annotations = from_folders(folders, [len(files[folder]) for folder in folders])
    tables = {name: file for name in beside(paths) if os.path.isfile(file := os.path.join(root, name))}
    annotations = from_beside(tables, column, annotations, root)
    if annotations.labels is not None and (empty := _empty_folders(times, files)):
        note = f"no image lies in {count(len(empty), 'folder')} beside class folders (the first: {empty[0]}/)"
        annotations = replace(annotations, notes=(*annotations.notes, note))
    named = [path for path, why in skipped if why == NO_IMAGE and path.endswith("/" + val_annotations.NAME)]
    annotations = val_annotations.add(annotations, paths, named, lambda path: Files(root).content(path, None))
    skipped = [entry for entry in skipped if entry[0] not in named]
    return Listing(
        store=Files(root),
        paths=column,
        annotations=annotations,
        skipped=sorted(skipped),
        times=times,
        started=started,
    )


def _videos(skipped: list[tuple[str, str]]) -> tuple[dict[str, list[str]], list[tuple[str, str]]]:
    """The names of skipped videos by folder, and the other skipped files."""
    files: dict[str, list[str]] = {}
    for path, why in sorted(skipped):
        if why == VIDEO:
            folder, _, name = path.rpartition("/")
            files.setdefault(folder, []).append(name)
    return files, [entry for entry in skipped if entry[1] != VIDEO]


def _empty_folders(folders: Iterable[str], files: Mapping[str, list[str]]) -> list[str]:
    """Folders without images or folders in them, beside folders with images."""
    parents = {folder.rpartition("/")[0] for folder in folders if folder}
    beside = {folder.rpartition("/")[0] for folder in files if folder}
    empty = set(folders) - files.keys() - parents
    return sorted(folder for folder in empty if folder and folder.rpartition("/")[0] in beside)


def _scan(
    root: str,
    folder: str,
    visited: set[str],
    names: list[str],
    subfolders: list[str],
    skipped: list[tuple[str, str]],
) -> None:
    """Append a folder's images, subfolders (relative to `root`) and other files; OSError keeps earlier ones.

    visited: real paths of linked folders, so that links that form a cycle are not followed.
    """
    with os.scandir(os.path.join(root, folder)) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                continue
            path = f"{folder}/{entry.name}" if folder else entry.name
            try:
                is_folder = entry.is_dir()
                reason = _why_not_entry(entry, is_folder, visited)
            except OSError as error:  # of this entry alone
                is_folder, reason = False, no_access(error)
            if reason is None:
                (subfolders if is_folder else names).append(path if is_folder else entry.name)
            elif not is_table(path):
                skipped.append((printable(path) + "/" * is_folder, reason))


def _why_not_entry(entry: os.DirEntry, is_folder: bool, visited: set[str]) -> str | None:
    """Why an entry of a folder is neither a folder to list nor a file that may be an image."""
    if is_folder:
        if not is_text(entry.name):
            return f"{NO_TEXT}; rename the folder"
        if entry.is_symlink():
            real = os.path.realpath(entry.path)
            if real in visited:
                return "a link to a folder that is listed already"
            visited.add(real)
        return None
    if not entry.is_file():
        return "not a regular file" if os.path.exists(entry.path) else "a link to nothing"
    return why_not(entry.name, lambda: _head(entry.path))


def list_glob(pattern: str) -> Listing:
    """Files that match the pattern, relative to its part without wildcards."""
    root = pattern
    while globbing.has_magic(root):
        root = os.path.dirname(root)
    paths = sorted(path for path in globbing.iglob(pattern, recursive=True) if not os.path.isdir(path))
    names = [os.path.relpath(path, root or ".").replace(os.sep, "/") for path in paths]
    reasons = ["" if os.path.isfile(path) else "not a regular file" for path in paths]
    return _from_names(Files(root or "."), names, reasons, None, lambda row: _head(paths[row]))


def list_file(file: str) -> Listing:
    """A single image."""
    folder, name = os.path.split(file)
    return _from_names(Files(folder or "."), [name], [""], None, lambda row: _head(file))


def list_zip(file: str) -> Listing:
    """Members of a .zip with the positions of their bytes, so that reading needs no directory in memory."""
    return _from_archive(Archive(file), zip_members(file))


def list_tar(file: str) -> Listing:
    """Members of an uncompressed .tar with their offsets."""
    try:
        members, damages = tar_members(file)
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror or line(error)}; give a file that you may read") from None
    listing = _from_archive(Archive(file), members)
    listing.skipped += [(os.path.basename(file), damage) for damage in damages]
    return listing


def _table(store: Archive, name: str, position: tuple[int, ...]) -> bytes:
    try:
        return store.bytes(np.array(position))
    except BadImage as error:
        raise ValueError(f"{store.file}/{name}: {error}; create the archive again") from None


def _from_archive(store: Archive, members: Iterable[Member]) -> Listing:
    names, where, reasons, tables, named = [], [], [], {}, {}
    for name, position, reason in members:
        if is_table(name) and not reason:
            tables[name] = _table(store, name, position)
            continue
        if name.endswith("/" + val_annotations.NAME) and not reason:
            named[name] = position
            continue
        names.append(name)
        where.append(position)
        reasons.append(reason)
    rows = np.array(where, np.int64).reshape(-1, 5)
    listing = _from_names(store, names, reasons, rows, lambda row: store.bytes(rows[row], HEAD))
    listing.annotations = from_beside(tables, listing.paths, listing.annotations, store.file)
    if named:
        listing.annotations = val_annotations.add(
            listing.annotations,
            listing.paths.to_pylist(),
            list(named),
            lambda name: store.bytes(np.array(named[name])),
        )
    return listing


def _from_names(
    store: Store,
    names: list[str],
    reasons: list[str],
    where: np.ndarray | None,
    head: Callable[[int], bytes],
) -> Listing:
    """Listing of the images among the names, sorted by folder and name, as `list_folder` does.

    reasons: why a file cannot be used, or "". Of several files of one name the last counts, as on unpacking.
    """
    skipped, rows = [], []
    last = {name: row for row, name in enumerate(names)} if where is not None else {}
    for row, name in enumerate(names):
        parts = name.split("/")
        if any(map(is_hidden, (part for part in parts if part not in (".", "..")))):
            continue
        if last.get(name, row) != row:
            reason = "a later member has this name"
        elif not is_text(name):
            reason = NO_TEXT
        else:
            reason = reasons[row] or why_not(parts[-1], lambda row=row: head(row))
        if reason == VIDEO and where is not None:
            reason = PACKED_VIDEO
        if reason:
            skipped.append((printable(name), reason))
        else:
            rows.append((name.rpartition("/")[0], name, row))
    if not rows:  # of these, only names that match a pattern can be videos
        videos, skipped = _videos(skipped)
        rows = [
            (folder, f"{folder}/{name}" if folder else name, 0)
            for folder in videos
            for name in videos[folder]
        ]
    rows.sort()
    counts = Counter(folder for folder, _, _ in rows)  # in order of first appearance
    return Listing(
        store=store,
        paths=pa.array([name for _, name, _ in rows], pa.large_string()),
        where=None if where is None else where[np.array([row for _, _, row in rows], np.int64)],
        annotations=from_folders(list(counts), list(counts.values())),
        skipped=sorted(skipped),
    )


def list_manifest(file: str) -> Listing:
    """A table with a column of paths, and labels, splits and captions if it has them."""
    rows = read_manifest(file)
    return Listing(store=rows.store, paths=rows.paths, annotations=rows.annotations, skipped=rows.skipped)


def list_arrays(file: str) -> Listing:
    """The images of an .npz, .npy or IDX file."""
    values, labels, splits, notes = read_arrays(file)
    if labels is not None and len(labels) != len(values):
        labelled = f"{count(len(labels), 'label')} for {count(len(values), 'image')}"
        raise ValueError(f"{file}: {labelled}; make them equal in number")
    read = Annotations() if labels is None else label_sets.from_array(labels)
    return Listing(
        store=Arrays(file, values),
        paths=pa.array([f"{Path(file).name}[{row}]" for row in range(len(values))], pa.large_string()),
        where=np.arange(len(values))[:, None],
        annotations=replace(read, splits=splits, notes=(*notes, *read.notes)),
    )
