"""Checks that need no PyTorch, whose import takes seconds: what is mistyped is refused at once."""

import functools
import glob
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omma import methods
from omma.core import launcher, outputs
from omma.core.errors import AlreadyReported
from omma.core.sources import missing, not_found
from omma.features import formats, records
from omma.pretraining.request import Request


def _said_once(check: Callable[..., None]) -> Callable[..., None]:
    """Of several processes, all of which check the same, the first one reports the error."""

    @functools.wraps(check)
    def checked(*arguments: Any) -> None:
        try:
            check(*arguments)
        except (ValueError, OSError) as error:
            if launcher.ranks().rank:
                raise AlreadyReported(str(error)) from error
            raise

    return checked


@_said_once
def images(source: str) -> None:
    """Raise ValueError for a plain path at which there is nothing."""
    path = os.path.expanduser(source)
    if "://" not in path and "{" not in path and not glob.has_magic(path) and not os.path.exists(path):
        raise not_found(source)


@_said_once
def model(name: str) -> None:
    """Raise ValueError for a plain path at which there is nothing; names such as timm:NAME have a colon."""
    if ":" not in name and not os.path.exists(name):
        remedy = "give a run folder, a weights file, timm:NAME or hf:NAME"
        raise missing(name, f"{name} does not exist; {remedy}")


@_said_once
def table(out: str) -> None:
    """Raise ValueError for a table that cannot be written at `out`."""
    formats.check_ending(out)
    if launcher.ranks().world_size == 1:  # of several processes the first will check
        outputs.check_file(out)


@_said_once
def answers(out: str) -> None:
    """The same for the table of answers."""
    records.check_ending(out)
    outputs.check_file(out)


@_said_once
def pretraining(request: Request) -> None:
    """Raise ValueError for images that are not there, an unknown method, or no place for the run."""
    images(str(request.images))
    if request.method != "auto":
        methods.check(request.method)
    finished = request.out is not None and os.path.exists(Path(request.out) / "model.safetensors")
    if launcher.ranks().world_size == 1 and not finished:
        outputs.check_folder(request.out or "runs")
