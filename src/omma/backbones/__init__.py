"""Backbones by the names of their papers; each file offers `names()` and `build(name, ...)`."""

import difflib
import importlib
import pkgutil
from typing import Any

import torch

from omma.protocols import Backbone


def _files() -> list[Any]:
    return [importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)]


def names() -> list[str]:
    """Every name that `build` knows."""
    return [name for file in _files() for name in file.names()]


def build(*, name: str, image_size: int, channels: int = 3, **options: Any) -> Backbone:
    """A freshly initialised backbone.

    `image_size`: pixels along a side that positions are made for; other sizes are interpolated.
    Raises ValueError for a name or option that does not exist.
    """
    for file in _files():
        backbone = file.build(name, image_size=image_size, channels=channels, **options)
        if backbone is not None:
            return backbone
    close = difflib.get_close_matches(name, names(), n=3) or names()[:5]
    raise ValueError(f"model {name!r} is unknown: did you mean {', '.join(close)}? `omma models` lists all")


def measure(name: str) -> tuple[int, int, int]:
    """(image size, parameters, width) of a model at the size it is usually used at; nothing is allocated."""
    with torch.device("meta"):
        size = 32
        try:
            backbone = build(name=name, image_size=size)
        except ValueError:
            size = 224
            backbone = build(name=name, image_size=size)
    if backbone.patch > 8:
        size = 224
        with torch.device("meta"):
            backbone = build(name=name, image_size=size)
    return size, sum(p.numel() for p in backbone.parameters()), backbone.dim
