"""`omma doctor`: versions, what hardware and precision will be used, and why."""

import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import torch

from omma.core import caches, files, outputs
from omma.core import device as machine
from omma.core.errors import line
from omma.core.explain import translated
from omma.ops.cpu import library

PACKAGES = ("torch", "numpy", "numba", "pillow", "pyarrow", "timm", "torchvision", "transformers")


@translated()
def doctor() -> list[tuple[str, str]]:
    """Facts about this machine and what follows from them, as (name, sentence).

    A fact that cannot be determined says so; the others are still printed.
    """
    place = machine.pick_device()
    facts: dict[str, Callable[[], str]] = {
        "omma": files.omma_version,
        "python": lambda: f"{platform.python_version()} on {platform.platform()}",
        "packages": _versions,
        "processor": lambda: (
            f"{platform.machine()}, {machine.cores()} cores, {torch.get_num_threads()} threads"
        ),
        "device": lambda: f"{place.type}: {_why(place)}",
        "memory": lambda: f"{machine.memory(place) / 2**30:.1f} GiB free",
        "precision": lambda: machine.explain_precision(place)[1],
        "caches": _caches,
    }
    if place.type == "cpu":
        facts["kernels"] = lambda: library.load()[1]
    return [(name, _said(find)) for name, find in facts.items()]


def _said(find: Callable[[], str]) -> str:
    try:
        return find()
    except Exception as error:
        return f"unknown ({type(error).__name__}: {line(error)})"


def _versions() -> str:
    """Of PyTorch and the packages that results depend on."""

    def known(name: str) -> str:
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            return f"no {name}"

    return ", ".join(map(known, PACKAGES))


def _caches() -> str:
    """Where listings and compiled kernels are cached, and whether they can be."""
    folder = caches.cache_folder()
    try:
        outputs.check_folder(folder, "OMMA_CACHE")
    except ValueError as error:
        return f"{error}; without caches commands begin later"
    return str(folder)


def _why(place: torch.device) -> str:
    if place.type == "cuda":
        return torch.cuda.get_device_name(place)
    if place.type == "mps":
        return "an Apple GPU"
    return "no GPU that PyTorch can use was found"
