"""How errors reach the user: in one line that says what, where and what to do (explain.py has the table)."""

import errno
import importlib
import importlib.util
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

_MACHINE = {errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_EXHAUSTED = re.compile(
    "an't allocate memory|annot allocate memory|Too many open files|No space left on device"
)
# C0 and C1 control characters but tab and newline, marks that reverse text, and halves of surrogate pairs
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


_SOURCE = Path(__file__).resolve().parents[3]  # the clone, where omma runs from one


class AlreadyReported(ValueError):
    """An error that another process of the same run has already reported to the user."""


def printable(text: str) -> str:
    """The text with control characters written out (\\x1b), so that a file's name cannot steer a terminal."""
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def message(error: BaseException) -> str:
    """The error's full message without line breaks and control characters; its type if it has no message."""
    return printable(" ".join(str(error).split())) or type(error).__name__


def line(error: BaseException) -> str:
    """The error's message in one line of at most 200 characters; its type where the message is empty."""
    return message(error)[:200]


def exhausted(error: BaseException) -> bool:
    """Is the machine out of memory, open files or disk space? That says nothing of what was being read."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _MACHINE
    # libraries raise it as anything, but not as ValueError, which is about what they were given
    said = not isinstance(error, ValueError) and _EXHAUSTED.search(str(error))
    return isinstance(error, MemoryError) or bool(said)


def need(module: str, extra: str) -> Any:
    """Import a module of an optional package. Raises ValueError that says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = module.partition(".")[0]
        raise ValueError(f"{missing} is not installed: {install_command(extra)} brings it") from error


def install_command(extra: str = "", package: str = "") -> str:
    """The command that installs an extra of omma, the newest of a package, or an extra with the newest.

    In a clone whose environment is uv's it is `uv sync`, in any other clone `pip install -e`, and elsewhere
    `pip install 'omma[extra]'`; it is `uv pip` where the environment has no pip.
    """
    clone = (_SOURCE / "pyproject.toml").is_file() and (_SOURCE / "src" / "omma").is_dir()
    synced = clone and _is_synced(_SOURCE)
    if synced and extra:  # without --inexact it would remove the extras that were asked for before
        newest = f" --upgrade-package {package}" if package else ""
        return f"uv sync --extra {extra} --inexact{newest}"
    pip = "pip" if importlib.util.find_spec("pip") and not synced else "uv pip"
    if package:
        return f"{pip} install -U {package}"
    what = shlex.quote(f"{_SOURCE}[{extra}]") if clone else f"'omma[{extra}]'"
    return f"{pip} install {'-e ' if clone else ''}{what}"


def _is_synced(project: Path) -> bool:
    """Whether `uv sync` in the project changes the environment that this process runs in."""
    environment = project / (os.environ.get("UV_PROJECT_ENVIRONMENT") or ".venv")
    return environment.resolve() == Path(sys.prefix).resolve()
