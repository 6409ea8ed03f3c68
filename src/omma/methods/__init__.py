"""Pretraining methods, one file each; a method's name is its file's name.

A file offers `Config` (frozen, defaults are the paper's), `views(config, image_size)`, the recipes
`paper(image_size, model)` and `small(image_size, model)`, and `Method`; where they are of use also
`needs(config)`, `adapted(recipe, model)` and, of texts, `tokenizer(config, trained, captions)`. See
CONTRIBUTING.md.
"""

import difflib
import importlib
import pkgutil
from types import ModuleType


def names() -> list[str]:
    """All methods."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.ispkg)


def get(name: str) -> ModuleType:
    """The file of one method; raises ValueError for an unknown name."""
    if name not in names():
        close = difflib.get_close_matches(name, names(), n=2) or names()
        raise ValueError(f"method {name!r} is unknown: choose {' or '.join(close)}; `omma methods` lists all")
    return importlib.import_module(f"{__name__}.{name}")
