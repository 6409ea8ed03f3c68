"""Where an export goes: checked before the work, and replaced as a whole after it."""

import os
from pathlib import Path

from omma.core import outputs
from omma.weights.export.formats import Format


def checked(out: Path, format: str, form: Format) -> Path:
    """The path to write. Raises ValueError where what the format makes cannot be put."""
    if not out.name or out.is_symlink():  # it is made in a folder beside it
        out = out.resolve()
    if suffix := Path(form.name).suffix:
        if out.suffix != suffix or out.is_dir():
            raise ValueError(f"{out}: the format {format} is one file; name it *{suffix}")
        outputs.check_file(out)
        return out
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ValueError(f"{out} exists; the format {format} is a folder of its own: give another place")
    outputs.check_file(out if not out.exists() else out.with_name(f"{out.name}.probe"))  # beside it
    return out


def move(folder: Path, out: Path) -> tuple[str, ...]:
    """Move everything in `folder` beside `out`, and what is named as `out` last; names of the files.

    Killed in between, `out` is absent or whole.
    """
    names = sorted((f.name for f in folder.iterdir()), key=lambda name: name == out.name)
    if out.is_dir():  # empty; some systems replace no folder
        out.rmdir()
    if len(names) > 1:  # a file from before must not stand with another's data beside it
        out.unlink(missing_ok=True)
    for name in names:
        os.replace(folder / name, out.with_name(name))
    return tuple(sorted(f.name for f in out.iterdir())) if out.is_dir() else tuple(names)
