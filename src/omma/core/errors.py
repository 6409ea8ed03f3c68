"""How errors reach the user: in one line."""

import importlib
from typing import Any


class AlreadyReported(ValueError):
    """An error that another process of the same run has already reported to the user."""


def line(error: BaseException) -> str:
    """The error's message in one line of at most 200 characters; its type where the message is empty."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def need(module: str, extra: str) -> Any:
    """Import a module of an optional package. Raises ValueError that says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = module.partition(".")[0]
        raise ValueError(f"{missing} is not installed: pip install 'omma[{extra}]' brings it") from error
