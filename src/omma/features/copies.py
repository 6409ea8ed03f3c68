"""Files of images copied into a folder for each class."""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from omma.core import outputs
from omma.core.protocols import Images
from omma.data.sources.indexed import IndexedImages

ABSTAIN = "_abstain"
_UNSAFE = re.compile(r'[\x00-\x1f\\/:*?"<>|]|^\.+|[. ]+$')  # no file system takes these everywhere


@dataclass(frozen=True)
class Place:
    """Copies files of images into folders below `root`."""

    root: Path
    images: IndexedImages

    def __call__(self, indices: Sequence[int], names: Sequence[str | Sequence[str]]) -> list[str]:
        """Copy each image into the folder of this name, or of these names one in another; the new paths.

        Paths are relative to `root`, with /. Files of one name get a number. Raises BadImage for a file that
        cannot be read.
        """
        paths = []
        for index, name in zip(indices, names, strict=True):
            data = self.images.content(int(index))
            folders = (name,) if isinstance(name, str) else name
            parent = self.root.joinpath(*map(safe, folders))
            parent.mkdir(parents=True, exist_ok=True)
            path = _free(parent, PurePosixPath(self.images.path(int(index))).name)
            with open(path, "xb") as file:
                file.write(data)
            paths.append(path.relative_to(self.root).as_posix())
        return paths


def check(out: Path, images: Images | None = None, option: str = "--copy") -> None:
    """Raise ValueError where images are no files, and for a folder that is not empty or cannot be made."""
    if images is not None and (not isinstance(images, IndexedImages) or not images.encoded):
        raise ValueError(f"{option} {out}: these images are arrays, not files: leave it out")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{option} {out} is there already and not empty: choose another folder")
    outputs.check_folder(out, option)


@contextlib.contextmanager
def folder(out: Path, images: Images, option: str = "--copy") -> Iterator[Place]:
    """Yield what copies the files of images into folders of given names; `out` appears when all are there.

    Files of one name get a number: a file is never overwritten. Raises ValueError as `check` does; option:
    named in its messages.
    """
    check(out, images, option)
    assert isinstance(images, IndexedImages)
    with outputs.temporary_folder(out) as partial:
        yield Place(partial, images)
        if out.exists():
            out.rmdir()  # it is empty
        os.replace(partial, out)


def safe(name: str) -> str:
    """The name of a class as that of a folder."""
    return _UNSAFE.sub("_", name)[:200] or "_"


def _free(parent: Path, name: str) -> Path:
    """A path that is not taken: a.jpg, a-2.jpg, a-3.jpg, ..."""
    path, number = parent / safe(name), 2
    while path.exists():
        plain = PurePosixPath(safe(name))
        path, number = parent / f"{plain.stem}-{number}{plain.suffix}", number + 1
    return path
