"""The function that lists a source, by what lies there."""

import glob as globbing
import os
from collections.abc import Callable

from omma.core.sources import not_found
from omma.data.sources.formats import HEAD, sniff
from omma.data.sources.list_rows import (
    holds_images,
    list_row_file,
    list_row_folder,
    list_row_pattern,
    pattern_files,
    row_files,
)
from omma.data.sources.listing import (
    Listing,
    list_arrays,
    list_file,
    list_folder,
    list_glob,
    list_manifest,
    list_tar,
    list_zip,
)
from omma.data.sources.names import is_sound, is_video


def lister(source: str, typed: str) -> tuple[Callable[[str], Listing], bool]:
    """The function that lists a source, and whether its listing is worth caching.

    typed: the source as the user typed it, for messages. Raises ValueError if there is no such source.
    """
    if os.path.isdir(source):
        return (list_row_folder, False) if row_files(source) else (list_folder, True)
    if not os.path.exists(source):
        if globbing.has_magic(source):
            return (list_row_pattern, False) if pattern_files(source) else (list_glob, False)
        if "://" in source:
            raise ValueError(f"{typed}: remote folders are not listed; give a manifest with a `path` column")
        raise not_found(typed)
    if not os.path.isfile(source):
        raise ValueError(f"{typed}: not a regular file; give a folder, archive or list of images")
    name = source.lower()
    if name.endswith((".parquet", ".arrow")) and holds_images(source):
        return list_row_file, False
    if name.endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")):
        raise ValueError(
            f"{typed}: compressed, so it cannot be read in place; unpack it or repack it as .tar"
        )
    by_name: tuple[tuple[tuple[str, ...], Callable[[str], Listing], bool], ...] = (
        ((".zip",), list_zip, True),
        ((".tar",), list_tar, True),
        ((".csv", ".tsv", ".parquet", ".jsonl"), list_manifest, False),
        ((".npz", ".npy", ".gz", "ubyte"), list_arrays, False),
    )
    for endings, function, cached in by_name:
        if name.endswith(endings):
            return function, cached
    try:
        with open(source, "rb") as file:
            if is_sound(name) or is_video(name) or sniff(file.read(HEAD)):
                return list_file, False
    except OSError as error:
        raise ValueError(f"{typed}: {error.strerror}; give a file that you may read") from None
    raise ValueError(
        f"{typed}: neither an image, sound or video nor .zip, .tar, .csv, .parquet, .jsonl, .npz, .npy, "
        "IDX .gz or .arrow with a column of images; convert it"
    )
