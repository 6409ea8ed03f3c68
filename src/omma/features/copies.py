"""Files of images copied into a folder for each class."""

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from omma.core import outputs
from omma.core.protocols import Images
from omma.data.sources.collection import IndexedImages

ABSTAIN = "_abstain"
_UNSAFE = re.compile(r'[\x00-\x1f\\/:*?"<>|]|^\.+|[. ]+$')  # no file system takes these everywhere

Place = Callable[[Sequence[int], Sequence[str]], None]


@contextlib.contextmanager
def folder(out: Path, images: Images) -> Iterator[Place]:
    """Yield what copies the files of images into folders of these names; `out` appears when all are there.

    Files of one name get a number: a file is never overwritten. Raises ValueError where images are no files,
    and for a folder that is not empty.
    """
    if not isinstance(images, IndexedImages) or not images.encoded:
        raise ValueError(f"--copy {out}: these images are arrays, not files: leave it out")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--copy {out} is there already and not empty: choose another folder")
    outputs.check_folder(out, "--copy")
    with outputs.temporary_folder(out) as partial:

        def place(indices: Sequence[int], names: Sequence[str]) -> None:
            for index, name in zip(indices, names, strict=True):
                parent = partial / safe(name)
                parent.mkdir(exist_ok=True)
                with open(_free(parent, PurePosixPath(images.path(int(index))).name), "xb") as file:
                    file.write(images.content(int(index)))

        yield place
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
