"""What users are told when something outside omma fails: one line."""

import importlib
from typing import Any


class AlreadyReported(ValueError):
    """What another process that trains with this one has told the user already."""


def line(error: BaseException) -> str:
    """What it says, in one line of at most 200 characters; its kind where it says nothing."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def need(module: str, extra: str) -> Any:
    """A module of an optional package; ValueError that says how that is installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = module.partition(".")[0]
        raise ValueError(f"{missing} is not installed: pip install 'omma[{extra}]' brings it") from error
