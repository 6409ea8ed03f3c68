"""omma's own bf16 kernels, compiled on the machine that uses them (kernels/, docs/adr/0009, 0015).

They need an x86 processor with AMX or AVX-512's bf16 and a compiler; they are compiled at their first use and
kept in the cache. Elsewhere, and with OMMA_KERNELS=off, torch's kernels run; OMMA_KERNELS=avx512 leaves AMX
unused. `omma doctor` says which kernels run, and why.
"""

import ctypes
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omma.core import caches, files, trust
from omma.core.errors import line

log = logging.getLogger(__name__)

NEEDED = ("avx512f", "avx512bw", "avx512vl", "avx512_bf16")
MATRIX_UNIT = ("amx_tile", "amx_bf16")
WITHOUT_IT = ("-mno-amx-tile", "-mno-amx-bf16")
FLAGS = ("-O3", "-std=c++17", "-march=native", "-fno-math-errno", "-fopenmp", "-fPIC", "-shared")
SOURCE = Path(__file__).parents[1] / "kernels"


@functools.cache
def load() -> tuple[ctypes.CDLL | None, str]:
    """The compiled kernels, or why there are none."""
    choice = os.environ.get("OMMA_KERNELS", "on")
    if choice not in ("on", "avx512"):
        return None, f"torch's: OMMA_KERNELS={choice}"
    cpu_flags = _cpu_flags()
    if lacking := [flag for flag in NEEDED if flag not in cpu_flags]:
        return None, f"torch's: omma's own need an x86 processor with {lacking[-1]} under Linux"
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if compiler is None:
        return None, "torch's: omma's own, which are faster, need a compiler (apt install g++)"
    amx = choice == "on" and all(flag in cpu_flags for flag in MATRIX_UNIT) and _amx_granted()
    flags = FLAGS if amx else (*FLAGS, *WITHOUT_IT)
    recipe = "\n".join([*(p.read_text() for p in sorted(SOURCE.iterdir())), compiler, *flags, *cpu_flags])
    name = f"kernels-{hashlib.blake2b(recipe.encode(), digest_size=8).hexdigest()}.so"
    command = [compiler, *flags, str(SOURCE / "all.cpp"), "-o"]
    try:
        library, where = _built(caches.cache_folder() / name, command)
    except subprocess.CalledProcessError as error:
        reason = next((line for line in error.stderr.splitlines() if "error" in line), error.stderr.strip())
        return None, f"torch's: {compiler} could not compile omma's own: {reason}"
    except OSError as error:
        return None, f"torch's: omma's own cannot be built or loaded: {error}"
    return library, f"omma's own, compiled for this processor's {'AMX' if amx else 'AVX-512'}{where}"


def _built(cached: Path, command: list[str]) -> tuple[ctypes.CDLL, str]:
    """The library, compiled unless it is there; and a remark if it cannot be cached.

    Raises OSError and CalledProcessError.
    """
    distrust = trust.why_not(cached)
    if distrust is None:
        try:
            if not cached.exists():
                with files.atomic_write(cached) as partial:
                    subprocess.run([*command, str(partial)], check=True, capture_output=True, text=True)
            if (distrust := trust.why_not(cached)) is None:  # of folders made by now, too
                return ctypes.CDLL(os.path.realpath(cached)), ""
        except OSError as error:
            distrust = line(error)
    with tempfile.TemporaryDirectory() as folder:  # this user's alone; a loaded library needs no file
        built = str(Path(folder) / cached.name)
        subprocess.run([*command, built], check=True, capture_output=True, text=True)
        log.warning(
            "compiled kernels are not cached (%s), so every command compiles them: set OMMA_CACHE to a "
            "folder of your own",
            distrust,
        )
        return ctypes.CDLL(built), f"; not cached: {distrust}"


def _amx_granted() -> bool:
    """Asks Linux for permission to use the matrix unit: arch_prctl(ARCH_REQ_XCOMP_PERM, tile data)."""
    return ctypes.CDLL(None).syscall(ctypes.c_long(158), ctypes.c_long(0x1023), ctypes.c_long(18)) == 0


def _cpu_flags() -> list[str]:
    """The processor's flags as Linux lists them; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    return next((line.split() for line in lines if line.startswith("flags")), [])


def call(name: str, *arguments: Tensor | int | float | None) -> None:
    """Call a kernel: tensors go by address, numbers as 64-bit integers or floats, the thread count last."""
    library = load()[0]
    assert library is not None
    passed: list[Any] = []
    for x in arguments:
        if isinstance(x, Tensor):
            assert x.is_contiguous(), f"{name}: strides {x.stride()} of shape {tuple(x.shape)}"
            passed.append(ctypes.c_void_p(x.data_ptr()))
        elif isinstance(x, float):
            passed.append(ctypes.c_float(x))
        else:
            passed.append(ctypes.c_void_p() if x is None else ctypes.c_long(x))
    getattr(library, name)(*passed, ctypes.c_int(torch.get_num_threads()))
