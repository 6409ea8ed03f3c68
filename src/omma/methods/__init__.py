"""Pretraining methods, one file each; a method's name is its file's name.

A file offers `Config` (frozen; its defaults are the paper's), `views(config, image_size)`, the recipes
`paper(image_size, model)` and `small(image_size, model)`, and `Method`; if it needs more than images also
`needs(config)`, if a sample is several frames of a sequence `frames(config)`, if options change the recipe
`adapted(recipe, options)`, and if it reads texts `tokenizer(config, trained, captions)`. `MethodFile` types
them; CONTRIBUTING.md walks through one.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the names of the methods are known without PyTorch, whose import takes seconds
    from omma.core import protocols
    from omma.core.protocols import Crop, Frames, Needs, Recipe, Tokenizer, Trained

RECIPES = ("small", "paper")
FINE_TUNING = "finetune"  # trains what `omma finetune` makes: no pretraining method, and not listed as one


def _needs_only_images(config: Any) -> Needs:
    from omma.core.protocols import Needs

    return Needs()


def _one_image(config: Any) -> Frames | None:
    return None


def _unchanged(recipe: Recipe, options: Mapping[str, Any]) -> Recipe:
    return recipe


@dataclass(frozen=True, kw_only=True)
class MethodFile:
    """What a method's file offers, with defaults for what it may leave out."""

    name: str
    doc: str  # the file's docstring, which `omma methods NAME` prints
    Config: type[Any]  # a frozen dataclass whose fields are the options --method.KEY
    Method: type[protocols.Method]  # built from (backbone, config, core.protocols.Context)
    views: Callable[[Any, int], tuple[Crop, ...]]  # of (config, image size in pixels)
    small: Callable[[int, str], Recipe]  # of (image size, model's name): 1,000 to 100,000 images, one machine
    paper: Callable[[int, str], Recipe]
    needs: Callable[[Any], Needs] = _needs_only_images  # of the config
    frames: Callable[[Any], Frames | None] = _one_image  # of the config; None: a sample is one image
    # of (recipe with the user's options, the model's options): what else of the recipe follows from them
    adapted: Callable[[Recipe, Mapping[str, Any]], Recipe] = _unchanged
    # of (name of the method that pretrained the weights, image size, model's name): `paper` for such weights
    paper_after: Callable[[str, int, str], Recipe] | None = None
    # of (config, the trained model that `needs` names, the captions); None for methods without texts
    tokenizer: Callable[[Any, Trained | None, Iterable[str]], Tokenizer] | None = None

    def recipe(self, name: str) -> Callable[[int, str], Recipe]:
        """The recipe of this name; raises ValueError for another than small and paper."""
        if name not in RECIPES:
            raise ValueError(f"recipe {name!r}: choose {' or '.join(RECIPES)}")
        return self.small if name == "small" else self.paper

    @property
    def reconstructs(self) -> bool:
        """Does a report show reconstructed images?"""
        from omma.core import protocols

        return self.Method.reconstruct is not protocols.Method.reconstruct


def names() -> list[str]:
    """All pretraining methods."""
    files = (m.name for m in pkgutil.iter_modules(__path__) if not m.ispkg)
    return sorted(name for name in files if name != FINE_TUNING)


def check(name: str) -> None:
    """Raise ValueError for an unknown name."""
    if name != FINE_TUNING and name not in names():
        close = difflib.get_close_matches(name, names(), n=2) or names()
        raise ValueError(f"method {name!r} is unknown: choose {' or '.join(close)}; `omma methods` lists all")


def summary(name: str) -> str:
    """The first line of a method's file, which is not imported."""
    source = (Path(__path__[0]) / f"{name}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


def get(name: str) -> MethodFile:
    """The file of one method; raises ValueError for an unknown name, TypeError for an incomplete file."""
    check(name)
    file = importlib.import_module(f"{__name__}.{name}")
    required = ("Config", "Method", "views", *RECIPES)
    if missing := [each for each in required if not hasattr(file, each)]:
        raise TypeError(f"{file.__file__} lacks {', '.join(missing)}: see CONTRIBUTING.md")
    optional = [
        each for each in ("needs", "frames", "adapted", "paper_after", "tokenizer") if hasattr(file, each)
    ]
    offered = {each: getattr(file, each) for each in (*required, *optional)}
    return MethodFile(name=name, doc=inspect.getdoc(file) or "", **offered)
