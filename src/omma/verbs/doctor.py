"""`omma doctor`: what hardware and precision will be used, and why."""

import platform

import torch

from omma.core import device as machine
from omma.core.explain import translated
from omma.ops.cpu import library


@translated()
def doctor() -> list[tuple[str, str]]:
    """Facts about this machine and what follows from them, as (name, sentence)."""
    place = machine.pick_device()
    facts = [
        ("python", platform.python_version()),
        ("torch", torch.__version__),
        ("processor", f"{platform.machine()}, {machine.cores()} cores, {torch.get_num_threads()} threads"),
        ("device", f"{place.type}: {_why(place)}"),
        ("memory", f"{machine.memory(place) / 2**30:.1f} GiB free"),
        ("precision", machine.explain_precision(place)[1]),
    ]
    if place.type == "cpu":
        facts.append(("kernels", library.load()[1]))
    return facts


def _why(place: torch.device) -> str:
    if place.type == "cuda":
        return torch.cuda.get_device_name(place)
    if place.type == "mps":
        return "an Apple GPU"
    return "no GPU that PyTorch can use was found"
