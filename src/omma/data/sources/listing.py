"""List the images and other files of a folder, archive, manifest or array file, without decoding."""

import glob as globbing
import io
import os
import tarfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.json as pajson
import pyarrow.parquet as pq

from omma.core.errors import line
from omma.core.protocols import BadImage
from omma.core.sources import not_found
from omma.data.sources.decode import HEAD, sniff
from omma.data.sources.labels import (
    Annotations,
    encode,
    from_folders,
    from_labels_csv,
    from_table,
    read_csv,
    strings,
)
from omma.data.sources.readers import LARGEST, Archive, Arrays, Files, Store, read_arrays

IMAGES = frozenset(
    "jpg jpeg jpe jfif png webp gif bmp dib tif tiff ppm pgm pbm pnm pfm avif jp2 j2k".split()  # noqa: SIM905
)  # images by their names alone; decoding detects a wrong name
OTHERS = frozenset(
    "txt csv tsv json jsonl xml yaml yml md html py log cls pdf npy npz parquet zip tar gz mp4 avi".split()  # noqa: SIM905
)  # never opened; a file with any other extension is an image if its first bytes say so


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


# ---------------------------------------------------------------- which names are images
def _hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX"))


def _why_not(name: str, head: Callable[[], bytes]) -> str | None:
    """Why a file is not an image; None if it may be one, which decoding decides."""
    if not name.isascii():
        try:
            name.encode()
        except UnicodeEncodeError:
            return "its name is not valid UTF-8"
    extension = name.rpartition(".")[2].lower()
    if extension in IMAGES:
        return None
    if extension in OTHERS:
        return "not an image"
    try:
        return None if sniff(head()) else "not an image"
    except OSError as error:
        return (error.strerror or "cannot be read").lower()
    except BadImage as error:
        return str(error)


def _head(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(HEAD)


def _printable(name: str) -> str:
    return name.encode("utf-8", "replace").decode()


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
            skipped.append((_printable(folder) + "/", (error.strerror or "cannot be read").lower()))
        if names:
            files[folder] = sorted(names)
    folders = sorted(files)
    paths: list[str] = []
    for folder in folders:
        paths += [f"{folder}/{name}" for name in files[folder]] if folder else files[folder]
    column, table = pa.array(paths, pa.large_string()), os.path.join(root, "labels.csv")
    if os.path.isfile(table):
        annotations = from_labels_csv(read_csv(table, table), column)
    else:
        annotations = from_folders(folders, [len(files[folder]) for folder in folders])
    return Listing(
        store=Files(root),
        paths=column,
        annotations=annotations,
        skipped=sorted(skipped),
        times=times,
        started=started,
    )


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
            path = f"{folder}/{entry.name}" if folder else entry.name
            if _hidden(entry.name):
                continue
            if entry.is_dir():
                if entry.is_symlink():
                    real = os.path.realpath(entry.path)
                    if real in visited:
                        continue
                    visited.add(real)
                subfolders.append(path)
            elif reason := _why_not(entry.name, lambda entry=entry: _head(entry.path)):
                if path != "labels.csv":
                    skipped.append((_printable(path), reason))
            else:
                names.append(entry.name)


def list_glob(pattern: str) -> Listing:
    """Files that match the pattern, relative to its part without wildcards."""
    root = pattern
    while globbing.has_magic(root):
        root = os.path.dirname(root)
    paths = sorted(path for path in globbing.iglob(pattern, recursive=True) if not os.path.isdir(path))
    names = [os.path.relpath(path, root or ".").replace(os.sep, "/") for path in paths]
    return _from_names(Files(root or "."), names, None, lambda row: _head(paths[row]))


def list_file(file: str) -> Listing:
    """A single image."""
    folder, name = os.path.split(file)
    return _from_names(Files(folder or "."), [name], None, lambda row: _head(file))


def list_zip(file: str) -> Listing:
    """Members of a .zip with the positions of their bytes, so that reading needs no directory in memory."""
    store, names, where, skipped, table = Archive(file), [], [], [], None
    try:
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                if member.is_dir():
                    continue
                if member.filename == "labels.csv" and member.file_size < LARGEST:
                    table = archive.read(member)
                    continue
                if member.flag_bits & 1:
                    reason = "encrypted"
                elif member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    reason = f"compression method {member.compress_type}; use deflate"
                else:
                    reason = _too_large(member.file_size)
                if reason:
                    skipped.append((_printable(member.filename), reason))
                    continue
                names.append(member.filename)
                position = (member.header_offset, member.compress_size, member.file_size)
                where.append((*position, member.compress_type, member.CRC))
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError) as error:
        raise ValueError(f"{file}: not a readable zip ({error}); create or download it again") from None
    return _from_archive(store, names, where, skipped, table)


def list_tar(file: str) -> Listing:
    """Members of an uncompressed .tar with their offsets."""
    store, names, where, skipped, table = Archive(file), [], [], [], None
    try:
        with tarfile.open(file, "r:") as archive:
            for member in archive:
                archive.members = []  # pyright: ignore[reportAttributeAccessIssue]  # tarfile would keep all of them
                if not member.isreg():
                    continue
                name = member.name.removeprefix("./")
                row = (member.offset_data, member.size, member.size, -1, -1)
                if name == "labels.csv" and member.size < LARGEST:
                    table = store.bytes(np.array(row))
                elif reason := "sparse" if member.issparse() else _too_large(member.size):
                    skipped.append((_printable(name), reason))
                else:
                    names.append(name)
                    where.append(row)
    except (tarfile.TarError, OSError, EOFError, BadImage) as error:
        raise ValueError(f"{file}: not a readable tar ({error}); create or download it again") from None
    return _from_archive(store, names, where, skipped, table)


def _too_large(size: int) -> str:
    return f"unpacks to {size / 1e9:.1f} GB" if size > LARGEST else ""


def _from_archive(
    store: Archive, names: list[str], where: list, skipped: list[tuple[str, str]], table: bytes | None
) -> Listing:
    rows = np.array(where, np.int64).reshape(-1, 5)
    listing = _from_names(store, names, rows, lambda row: store.bytes(rows[row], HEAD))
    listing.skipped += skipped
    if table is not None:
        listing.annotations = from_labels_csv(
            read_csv(io.BytesIO(table), f"{store.file}/labels.csv"), listing.paths
        )
    return listing


def _from_names(
    store: Store, names: list[str], where: np.ndarray | None, head: Callable[[int], bytes]
) -> Listing:
    """Listing of the images among the names, sorted by folder and name, as `list_folder` does."""
    skipped, rows = [], []
    for row, name in enumerate(names):
        parts = name.split("/")
        if any(map(_hidden, (part for part in parts if part not in (".", "..")))):
            continue
        if reason := _why_not(parts[-1], lambda row=row: head(row)):
            skipped.append((_printable(name), reason))
        else:
            rows.append((name.rpartition("/")[0], name, row))
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
    """A .csv, .parquet or .jsonl with a `path` column, and labels, splits and captions if it has them."""
    try:
        if file.lower().endswith(".parquet"):
            table = pq.read_table(file)
        elif file.lower().endswith(".jsonl"):
            table = pajson.read_json(file)
        else:
            table = read_csv(file, file)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file}: not a readable table ({line(error)}); save it again") from None
    if "path" not in table.column_names:
        columns = ", ".join(table.column_names)
        raise ValueError(f"{file}: no column `path` among {columns}; name the column of image paths `path`")
    has_path = np.array([bool(path) for path in strings(table, "path").to_pylist()], bool)
    table = table.filter(pa.array(has_path))
    return Listing(
        store=Files(os.path.dirname(os.path.abspath(file))),
        paths=strings(table, "path"),
        annotations=from_table(table),
        skipped=[(f"row {row + 1}", "no path") for row in np.flatnonzero(~has_path)],
    )


def list_arrays(file: str) -> Listing:
    """The images of an .npz, .npy or IDX file."""
    values, labels, splits = read_arrays(file)
    codes, classes = (None, ()) if labels is None else encode(labels)
    if codes is not None and len(codes) != len(values):
        raise ValueError(f"{file}: {len(codes)} labels for {len(values)} images; make them equal in number")
    return Listing(
        store=Arrays(file, values),
        paths=pa.array([f"{Path(file).name}[{row}]" for row in range(len(values))], pa.large_string()),
        where=np.arange(len(values))[:, None],
        annotations=Annotations(labels=codes, classes=classes, splits=splits),
    )


def lister(source: str, typed: str) -> tuple[Callable[[str], Listing], bool]:
    """The function that lists a source, and whether its listing is worth caching.

    typed: the source as the user typed it, for messages. Raises ValueError if there is no such source.
    """
    if os.path.isdir(source):
        return list_folder, True
    if not os.path.exists(source):
        if globbing.has_magic(source):
            return list_glob, False
        if "://" in source:
            raise ValueError(f"{typed}: remote folders are not listed; give a manifest with a `path` column")
        raise not_found(typed)
    name = source.lower()
    if name.endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")):
        raise ValueError(
            f"{typed}: compressed, so it cannot be read in place; unpack it or repack it as .tar"
        )
    by_name: tuple[tuple[tuple[str, ...], Callable[[str], Listing], bool], ...] = (
        ((".zip",), list_zip, True),
        ((".tar",), list_tar, True),
        ((".csv", ".parquet", ".jsonl"), list_manifest, False),
        ((".npz", ".npy", ".gz", "ubyte"), list_arrays, False),
    )
    for endings, function, cached in by_name:
        if name.endswith(endings):
            return function, cached
    try:
        with open(source, "rb") as file:
            if sniff(file.read(HEAD)):
                return list_file, False
    except OSError as error:
        raise ValueError(f"{typed}: {error.strerror}; give a file that you may read") from None
    raise ValueError(
        f"{typed}: neither an image nor .zip, .tar, .csv, .parquet, .jsonl, .npz, .npy or IDX .gz; convert it"
    )
