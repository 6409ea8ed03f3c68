"""List the images that a program names one by one: files, and folders with all that lies in them."""

import itertools
import os
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from omma.core.errors import printable
from omma.data.sources import remote
from omma.data.sources.layout import LabelDepth, from_folders
from omma.data.sources.listing import Listing, list_folder
from omma.data.sources.names import NO_IMAGE, VIDEO, why_not
from omma.data.sources.readers import Files
from omma.data.sources.tables import ENDINGS

LIST = "list"  # how messages and run folders name such a source
_PACKED = (*ENDINGS, ".zip", ".tar", ".npz", ".npy", ".gz", ".arrow")


def are_paths(source: Any) -> bool:
    """Whether this is a list, tuple or array of paths."""
    if not isinstance(source, list | tuple) and getattr(getattr(source, "dtype", None), "kind", "") != "U":
        return False
    return len(source) > 0 and all(isinstance(each, str | os.PathLike) for each in source)


def list_paths(paths: Sequence[str], label_depth: LabelDepth | None = None) -> Listing:
    """The files in their order, and in the place of a folder its images; paths stay as they are given.

    Folders name classes and parts as in the folder that holds all of them. Tables within are not read.
    Raises ValueError in one line for archives, tables and arrays.
    """
    here = os.getcwd()  # images can still be read after a change of the working directory
    names: list[str] = []
    skipped: list[tuple[str, str]] = []
    for given in paths:
        path = os.path.expanduser(given)
        if os.path.isdir(path):
            folder = list_folder(os.path.abspath(path))
            names += [os.path.join(path, name) for name in folder.paths.to_pylist()]
            skipped += [(os.path.join(given, name), why) for name, why in folder.skipped]
            continue
        if path.lower().endswith(_PACKED):
            raise ValueError(
                f"{printable(given)}: a list names image files and folders; give an archive, table or array "
                "by itself"
            )
        reason = _why_not(path)
        if reason is None:
            names.append(path)
        else:
            skipped.append((printable(given), reason))
    return Listing(
        store=Files(here, remote=remote.allowed()),
        paths=pa.array(names, pa.large_string()),
        annotations=_from_folders(names, label_depth),
        skipped=skipped,
    )


def _why_not(path: str) -> str | None:
    if remote.is_remote(path):
        return None if remote.allowed() else remote.REFUSED
    if not os.path.exists(path):
        return "no such file"

    def head() -> bytes:
        with open(path, "rb") as file:
            return file.read(256)

    reason = why_not(os.path.basename(path), head)
    return None if reason == VIDEO else reason or (None if os.path.isfile(path) else NO_IMAGE)


def _from_folders(names: Sequence[str], depth: LabelDepth | None) -> Any:
    """Labels and parts by the folders below the one that all files share."""
    parents = [os.path.dirname(name if "://" in name else os.path.abspath(name)) for name in names]
    local = [parent for parent in parents if "://" not in parent]
    try:
        root = os.path.commonpath(local) if len(local) == len(parents) > 0 else ""
    except ValueError:  # of several drives
        root = ""
    below = [(os.path.relpath(parent, root) if root else parent).replace(os.sep, "/") for parent in parents]
    runs = [("" if name == "." else name, len(list(same))) for name, same in itertools.groupby(below)]
    return from_folders([name for name, _ in runs], [n for _, n in runs], depth)
