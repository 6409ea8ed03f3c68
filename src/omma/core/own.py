"""Networks of the user's own by name: `networks:build` is the function `build` of the module `networks`.

Only functions that `network` marks are called, so a model from elsewhere cannot name any other.
"""

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])

_NAME = re.compile(r"(?!(?:timm|torchvision|hf|wrapped):)([A-Za-z_]\w*(?:\.\w+)*):([A-Za-z_]\w*)")
_MARK = "builds_network"


def network(build: Function) -> Function:
    """Mark a function, or a class, that makes a network, so that runs and commands can name it.

    `omma.pretrain(images, model=build)` and `--model networks:build` then train what it returns: a
    torch.nn.Module that maps images to vectors, a map or tokens, as `omma.wrap` takes it. If it has
    parameters `image_size`, `channels` and `drop_path`, they are given. It is called again wherever the model
    is loaded, so it stands in a module of its own that can be imported there, and makes the same network each
    time.

    Raises ValueError for a function within another, and for one of a script or notebook (`__main__`).
    """
    name = f"{build.__module__}:{build.__qualname__}"
    if build.__module__ == "__main__" or not is_own(name):
        raise ValueError(
            f"{build.__qualname__} cannot be imported by name: write it at the top of a file of its own, "
            "such as networks.py, and import it from there"
        )
    setattr(build, _MARK, name)
    return build


def is_own(name: str) -> bool:
    """Whether a model's name has the form MODULE:FUNCTION."""
    return _NAME.fullmatch(name) is not None


def name_of(build: Any) -> str:
    """The name under which `find` gives the function; ValueError for one that is not marked."""
    name = getattr(build, _MARK, None)
    if not isinstance(name, str) or not callable(build):
        raise ValueError(
            f"model is {_kind(build)}: give a name of `omma models`, or a function that builds your network, "
            "marked by @omma.network (docs/own_network.md)"
        )
    return name


def find(name: str) -> Callable[..., Any]:
    """The marked function MODULE:FUNCTION; modules of the working folder are found, too.

    Raises ValueError if there is no such module or function, or if it is not marked.
    """
    module, _, function = name.partition(":")
    build = getattr(_imported(module, name), function, None)
    if build is None:
        raise ValueError(f"model {name}: the module {module} has no {function}")
    if getattr(build, _MARK, None) != name:
        raise ValueError(
            f"model {name}: {module}.{function} is not marked as a function that builds a network; write "
            "@omma.network above it, in the module that defines it"
        )
    return build


def source(build: Callable[..., Any]) -> str:
    """The text of the module that the function stands in; "" where there is none."""
    try:
        return inspect.getsource(sys.modules[build.__module__])
    except (OSError, TypeError):
        return ""


def _imported(module: str, name: str) -> Any:
    if (
        os.getcwd() not in sys.path
    ):  # as in scripts and notebooks, but not in commands; last, so it hides nothing
        sys.path.append(os.getcwd())
    importlib.invalidate_caches()  # a file that was just written
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there, and what it imports is not
        raise ValueError(
            f"model {name}: there is no module {error.name} in {os.getcwd()} or on the Python path; run omma "
            "in the folder that it is in, or add that folder to PYTHONPATH"
        ) from None


def _kind(value: Any) -> str:
    for kind, is_one in (("function", inspect.isfunction), ("class", inspect.isclass)):
        if is_one(value):
            return f"the {kind} {value.__qualname__}"
    return f"a {type(value).__name__}"
