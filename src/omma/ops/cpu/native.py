"""Kernels of our own in bf16 for x86 processors with AMX or AVX-512's bf16 (kernels/, docs/adr/0009, 0015).

They are compiled on the machine that uses them, when they are first wanted, and kept in the cache. Where
there is no such processor or no compiler, or OMMA_KERNELS=off, torch's are used; OMMA_KERNELS=avx512 leaves
AMX unused. `omma doctor` says which and why. Each takes contiguous tensors and is a torch operator, so that
profilers and counters see it.
"""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omma.core import files

NEEDED = ("avx512f", "avx512bw", "avx512vl", "avx512_bf16")
MATRIX_UNIT = ("amx_tile", "amx_bf16")
WITHOUT_IT = ("-mno-amx-tile", "-mno-amx-bf16")
FLAGS = ("-O3", "-std=c++17", "-march=native", "-fno-math-errno", "-fopenmp", "-fPIC", "-shared")
SOURCE = Path(__file__).parents[1] / "kernels"

# how the operands of `weight_gradient` lie: in rows, or one in squares of 32 x 32 (kernels/branches.cpp)
NONE, GRAD, GELU_OF_INPUT = 0, 1, 4

_registry = torch.library.Library("omma", "DEF")
_registry.define("gelu(Tensor x) -> Tensor")
_registry.define("gelu_backward(Tensor grad, Tensor x) -> Tensor")
_registry.define("norm(Tensor x, Tensor scale, Tensor shift, float eps) -> (Tensor, Tensor, Tensor)")
_registry.define(
    "norm_backward(Tensor grad, Tensor x, Tensor scale, Tensor mean, Tensor inverse)"
    " -> (Tensor, Tensor, Tensor)"
)
_registry.define("weight_gradient(Tensor grad, Tensor x, bool bias, int lie=0) -> (Tensor, Tensor?)")
_registry.define("attend(Tensor qkv, int[] shapes, int heads, bool train) -> (Tensor, Tensor?)")
_registry.define(
    "attend_backward(Tensor grad, Tensor qkv, Tensor result, Tensor log_sum, int[] shapes, int heads)"
    " -> Tensor"
)
_registry.define(
    "mlp(Tensor x, Tensor scale, Tensor shift, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, Tensor? gamma,"
    " Tensor? onto, float eps, bool train) -> (Tensor, Tensor?, Tensor?, Tensor?)"
)
_registry.define(
    "mlp_backward(Tensor grad, Tensor x, Tensor scale, Tensor shift, Tensor mean, Tensor inverse, Tensor u,"
    " Tensor w1, Tensor w2, Tensor? onto) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_registry.define(
    "mix(Tensor x, Tensor scale, Tensor shift, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, Tensor? gamma,"
    " Tensor? onto, float eps, int[] shapes, int heads, bool train)"
    " -> (Tensor, Tensor?, Tensor?, Tensor?, Tensor?, Tensor?)"
)
_registry.define(
    "mix_backward(Tensor grad, Tensor x, Tensor scale, Tensor shift, Tensor mean, Tensor inverse, Tensor qkv,"
    " Tensor result, Tensor log_sum, Tensor w1, Tensor w2, Tensor? onto, int[] shapes, int heads)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def fits(*tensors: Tensor) -> bool:
    """Are these for the kernels, and are the kernels there?"""
    return (
        all(t.device.type == "cpu" and t.dtype == torch.bfloat16 for t in tensors)
        and not torch.compiler.is_compiling()
        and found()[0] is not None
    )


@functools.cache
def found() -> tuple[ctypes.CDLL | None, str]:
    """The compiled kernels, or why there are none."""
    wanted = os.environ.get("OMMA_KERNELS", "on")
    if wanted not in ("on", "avx512"):
        return None, f"torch's: OMMA_KERNELS={wanted}"
    words = _abilities()
    if lacking := [flag for flag in NEEDED if flag not in words]:
        return None, f"torch's: omma's own need an x86 processor with {lacking[-1]} under Linux"
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if compiler is None:
        return None, "torch's: omma's own, which are faster, need a compiler (apt install g++)"
    amx = wanted == "on" and all(flag in words for flag in MATRIX_UNIT) and _granted()
    flags = FLAGS if amx else (*FLAGS, *WITHOUT_IT)
    recipe = "\n".join([*(p.read_text() for p in sorted(SOURCE.iterdir())), compiler, *flags, *words])
    built = files.cache_folder() / f"kernels-{hashlib.blake2b(recipe.encode(), digest_size=8).hexdigest()}.so"
    try:
        if not built.exists():
            with files.atomic_write(built) as partial:
                command = [compiler, *flags, str(SOURCE / "all.cpp"), "-o", str(partial)]
                subprocess.run(command, check=True, capture_output=True, text=True)
        library = ctypes.CDLL(str(built))
    except subprocess.CalledProcessError as error:
        reason = next((line for line in error.stderr.splitlines() if "error" in line), error.stderr.strip())
        return None, f"torch's: {compiler} could not compile omma's own: {reason}"
    except OSError as error:
        return None, f"torch's: omma's own cannot be built or loaded: {error}"
    return library, f"omma's own, compiled for this processor's {'AMX' if amx else 'AVX-512'}"


def _granted() -> bool:
    """Asks Linux for the processor's matrix unit: arch_prctl(ARCH_REQ_XCOMP_PERM, tile data)."""
    return ctypes.CDLL(None).syscall(ctypes.c_long(158), ctypes.c_long(0x1023), ctypes.c_long(18)) == 0


def _abilities() -> list[str]:
    """What Linux says of the processor; nothing elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    return next((line.split() for line in lines if line.startswith("flags")), [])


def _call(name: str, *arguments: Tensor | int | float | None) -> None:
    """By address, 64-bit integer or float; last, the number of threads."""
    library = found()[0]
    assert library is not None
    given: list[Any] = []
    for x in arguments:
        if isinstance(x, Tensor):
            assert x.is_contiguous(), f"{name}: strides {x.stride()} of shape {tuple(x.shape)}"
            given.append(ctypes.c_void_p(x.data_ptr()))
        elif isinstance(x, float):
            given.append(ctypes.c_float(x))
        else:
            given.append(ctypes.c_void_p() if x is None else ctypes.c_long(x))
    getattr(library, name)(*given, ctypes.c_int(torch.get_num_threads()))


def _operator(function: Any) -> Any:
    """Registers the function under its name as the operator's form on a CPU."""
    _registry.impl(function.__name__.lstrip("_"), function, "CPU")
    return getattr(torch.ops.omma, function.__name__.lstrip("_"))


@_operator
def _gelu(x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    _call("gelu", x.numel(), x, out)
    return out


@_operator
def _gelu_backward(grad: Tensor, x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    _call("gelu_backward", x.numel(), grad, x, out)
    return out


@_operator
def _norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    d = x.shape[-1]
    n = x.numel() // d
    out, mean = torch.empty_like(x), x.new_empty(n, dtype=torch.float32)
    inverse = torch.empty_like(mean)
    _call("norm", n, d, eps, x, scale, shift, out, mean, inverse)
    return out, mean, inverse


@_operator
def _norm_backward(
    grad: Tensor, x: Tensor, scale: Tensor, mean: Tensor, inverse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    dx, dscale, dshift = torch.empty_like(x), torch.empty_like(scale), torch.empty_like(scale)
    _call("norm_backward", mean.numel(), x.shape[-1], grad, x, scale, mean, inverse, dx, dscale, dshift)
    return dx, dscale, dshift


@_operator
def _weight_gradient(grad: Tensor, x: Tensor, bias: bool, lie: int = NONE) -> tuple[Tensor, Tensor | None]:
    n, o = min(len(grad), len(x)), grad.shape[1]
    out = grad.new_empty(o, x.shape[1])
    sums = grad.new_empty(o) if bias else None
    _call("weight_gradient", n, o, x.shape[1], grad, x, lie, out, sums)
    return out, sums


def _lengths(shapes: Sequence[int], *tensors: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """b, n and the rows of each tensor [t, ...] for the samples of each length; shapes: b, n, b, n, ..."""
    counts = [b * n for b, n in zip(shapes[::2], shapes[1::2], strict=True)]
    rows = ([None] * len(counts) if t is None else t.split(counts) for t in tensors)
    return zip(shapes[::2], shapes[1::2], *rows, strict=True)


@_operator
def _attend(qkv: Tensor, shapes: Sequence[int], heads: int, train: bool) -> tuple[Tensor, Tensor | None]:
    rows = qkv.flatten(0, 1)
    t, width = rows.shape
    out = qkv.new_empty(t, width // 3)
    log_sum = qkv.new_empty(t, heads, dtype=torch.float32) if train else None
    for b, n, *given in _lengths(shapes, rows, out, log_sum):
        _call("attend", b, n, heads, width // (3 * heads), *given)
    return out.view(*qkv.shape[:2], width // 3), log_sum


@_operator
def _attend_backward(
    grad: Tensor, qkv: Tensor, result: Tensor, log_sum: Tensor, shapes: Sequence[int], heads: int
) -> Tensor:
    out = torch.empty_like(qkv)
    rows = (x.flatten(0, 1) for x in (grad, qkv, result))
    for b, n, *given in _lengths(shapes, *rows, log_sum, out.flatten(0, 1)):
        _call("attend_backward", b, n, heads, qkv.shape[-1] // (3 * heads), *given)
    return out


SPARE = 31  # rows after the last that are read, and not used, where rows are multiplied 32 at a time


def _whole(rows: int) -> int:
    return (rows + SPARE) // (SPARE + 1) * (SPARE + 1)


def _with_spare(like: Tensor, rows: int, width: int) -> Tensor:
    return like.new_empty(rows + SPARE, width)[:rows]


@_operator
def _mlp(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    gamma: Tensor | None,
    onto: Tensor | None,
    eps: float,
    train: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    (h, d), n = w1.shape, x.numel() // w1.shape[1]
    y = torch.empty_like(x)
    u, mean, inverse = None, None, None
    if train:
        u, mean, inverse = x.new_empty(_whole(n), h), *x.new_empty(2, n, dtype=torch.float32)
    _call("mlp", n, d, h, eps, x, scale, shift, w1, b1, w2, b2, gamma, onto, y, u, mean, inverse)
    return y, u, mean, inverse


@_operator
def _mlp_backward(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    mean: Tensor,
    inverse: Tensor,
    u: Tensor,
    w1: Tensor,
    w2: Tensor,
    onto: Tensor | None,
) -> tuple[Tensor, ...]:
    h, d, n = u.shape[1], x.shape[-1], len(mean)
    dx, du, again = torch.empty_like(x), torch.empty_like(u), x.new_empty(n, d)
    dscale, dshift = torch.empty_like(scale), torch.empty_like(shift)
    known = (grad, x, scale, shift, mean, inverse, u, w1, w2, onto)
    _call("mlp_backward", n, d, h, *known, dx, du, again, dscale, dshift)
    return dx, du, again, dscale, dshift


@_operator
def _mix(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    gamma: Tensor | None,
    onto: Tensor | None,
    eps: float,
    shapes: Sequence[int],
    heads: int,
    train: bool,
) -> tuple[Tensor | None, ...]:
    d, t, numbers = x.shape[-1], x.numel() // x.shape[-1], torch.tensor(shapes)
    y = torch.empty_like(x)
    kept = [None] * 5
    if train:
        qkv, out = x.new_empty(t, 3 * d), _with_spare(x, t, d)
        log_sum, mean, inverse = (
            x.new_empty(t, heads, dtype=torch.float32),
            *x.new_empty(2, t, dtype=torch.float32),
        )
        kept = [qkv, out, log_sum, mean, inverse]
    known = (x, scale, shift, w1, b1, w2, b2, gamma, onto)
    _call("mix", len(shapes) // 2, numbers, d, heads, eps, *known, y, *kept)
    return y, *kept


@_operator
def _mix_backward(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    mean: Tensor,
    inverse: Tensor,
    qkv: Tensor,
    result: Tensor,
    log_sum: Tensor,
    w1: Tensor,
    w2: Tensor,
    onto: Tensor | None,
    shapes: Sequence[int],
    heads: int,
) -> tuple[Tensor, ...]:
    (t, width), numbers = qkv.shape, torch.tensor(shapes)
    dx, dqkv, again = torch.empty_like(x), _with_spare(x, t, width), torch.empty_like(result)
    dscale, dshift = torch.empty_like(scale), torch.empty_like(shift)
    known = (grad, x, scale, shift, mean, inverse, qkv, result, log_sum, w1, w2, onto)
    _call(
        "mix_backward", len(shapes) // 2, numbers, width // 3, heads, *known, dx, dqkv, again, dscale, dshift
    )
    return dx, dqkv, again, dscale, dshift


class Gelu(torch.autograd.Function):
    """x -> gelu(x), of any shape."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x)
        return torch.ops.omma.gelu(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore
        (x,) = ctx.saved_tensors
        return torch.ops.omma.gelu_backward(grad.contiguous(), x)


class Norm(torch.autograd.Function):
    """x, scale, shift, eps -> layer norm over the last dimension; all sums in fp32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        out, mean, inverse = torch.ops.omma.norm(x, scale, shift, eps)
        ctx.save_for_backward(x, scale, mean, inverse)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        x, scale, mean, inverse = ctx.saved_tensors
        return *torch.ops.omma.norm_backward(grad.contiguous(), x, scale, mean, inverse), None


class Attend(torch.autograd.Function):
    """qkv [b, n, 3d], shapes, heads -> attention [b, n, d] of each sequence with itself.

    shapes: b, n; or, where sequences of several lengths are packed in [1, t, 3d], these numbers of each.

    The backward pass makes the weights anew from what each query's exponentials sum to, as FlashAttention
    does [Dao 2022, arXiv 2205.14135]; here a head's weights fit into a core's cache.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, shapes: Sequence[int], heads: int) -> Tensor:
        qkv = qkv.contiguous()
        out, log_sum = torch.ops.omma.attend(qkv, shapes, heads, True)
        ctx.save_for_backward(qkv, out, log_sum)
        ctx.shapes, ctx.heads = shapes, heads
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore
        known = (*ctx.saved_tensors, ctx.shapes, ctx.heads)
        return torch.ops.omma.attend_backward(grad.contiguous(), *known), None, None
