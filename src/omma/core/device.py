"""The device and precision to compute with, and measurements of the machine."""

import ctypes
import functools
import os
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from omma.core import launcher

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def pick_device(name: str = "auto") -> torch.device:
    """The device called `name`; "auto" is CUDA if available, else MPS, else CPU.

    With several processes on this machine, each gets the GPU of its local rank. Raises ValueError for a
    device that is unknown or not available.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return _own_gpu()
        single = launcher.ranks().world_size == 1
        return torch.device("mps" if torch.backends.mps.is_available() and single else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device {name!r}: choose auto, cpu, cuda or mps") from None
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(device.type, False):
        raise ValueError(f"device {name!r} is not available on this machine: use --device auto")
    if name == "cuda":
        return _own_gpu()
    if launcher.ranks().world_size > 1 and device.type != "cpu":
        raise ValueError(
            f"device {name!r} is a single device for several processes: use --device auto, one GPU each"
        )
    return device


def _own_gpu() -> torch.device:
    """CUDA's current device for a single process; with several, the GPU of this process's local rank."""
    ranks, count = launcher.ranks(), torch.cuda.device_count()
    if ranks.world_size == 1:
        return torch.device("cuda")
    if ranks.local_rank >= count:
        raise ValueError(
            f"{count} GPUs for {ranks.local_world_size} processes on this machine: "
            f"start --nproc-per-node {count}"
        )
    return torch.device("cuda", ranks.local_rank)


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype called `name`; "auto" is bf16 where `explain_precision` finds it faster, else fp32.

    Raises ValueError for an unknown precision.
    """
    if name == "fp8":
        raise ValueError("precision fp8 gains little at the widths of ViTs (docs/adr/0013): choose bf16")
    if name != "auto":
        if name not in PRECISIONS:
            raise ValueError(f"precision {name!r}: choose auto, {' or '.join(PRECISIONS)}")
        return PRECISIONS[name]
    return torch.bfloat16 if explain_precision(device)[0] else torch.float32


def precision_name(dtype: torch.dtype) -> str:
    """The option's value for this dtype, such as "bf16"."""
    return next(name for name, value in PRECISIONS.items() if value == dtype)


def explain_precision(device: torch.device) -> tuple[bool, str]:
    """Whether bf16 is worth it on this device, and the reason in one sentence."""
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) >= (8, 0):
            return True, "bf16: this GPU has bf16 matrix units"
        return False, "fp32: this GPU has no bf16 matrix units"
    if device.type == "mps":
        return False, "fp32: bf16 is not measured to be faster on Apple GPUs"
    gain = cpu_gain()
    if gain >= 1.2:
        return (
            True,
            f"bf16: measured {gain:.1f} times as fast as fp32 in a transformer's matrix products on this CPU",
        )
    return (
        False,
        f"fp32: bf16 measured {gain:.1f} times as fast as fp32 on this CPU, too little to be worth it",
    )


@functools.cache
def cpu_gain() -> float:
    """Measured speed of bf16 relative to fp32 in an MLP's forward and backward pass (.5 s, cached)."""

    def seconds(dtype: torch.dtype) -> float:
        x = torch.ones(4096, 192, dtype=dtype, requires_grad=True)
        w = torch.ones(768, 192, dtype=dtype, requires_grad=True)
        start = time.perf_counter()
        F.gelu(F.linear(x, w)).sum().backward()
        return time.perf_counter() - start

    for dtype in (torch.float32, torch.bfloat16):
        seconds(dtype)  # warm-up
    pairs = [(seconds(torch.float32), seconds(torch.bfloat16)) for _ in range(9)]
    return statistics.median(a for a, _ in pairs) / statistics.median(b for _, b in pairs)


def keep_memory() -> None:
    """Make glibc reuse freed memory instead of returning it to the system; does nothing without glibc.

    By default glibc returns large blocks and gets fresh pages for each new tensor; on virtual machines these
    page faults take up to half of a training step on the CPU. The setting holds for the whole process, so the
    command line calls this and the library does not.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # malloc.h
    mallopt(mmap_threshold, 32 << 20)  # the largest value that glibc accepts
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 64 << 20)


def return_memory() -> None:
    """Give back to the system what glibc has kept (`keep_memory`) and nothing uses; nothing without glibc."""
    try:
        trim = ctypes.CDLL("libc.so.6").malloc_trim
    except (OSError, AttributeError):
        return
    trim(0)


def share_cores() -> None:
    """Divide this machine's cores among the processes that torchrun started on it.

    torchrun sets OMP_NUM_THREADS=1, so that each process would use one core; a larger value was set by the
    user and is respected. Like `keep_memory`, this is for programs to call, not for the library.
    """
    ranks = launcher.ranks()
    if ranks.local_world_size > 1 and os.environ.get("OMP_NUM_THREADS", "1") == "1":
        torch.set_num_threads(max(1, cores() // ranks.local_world_size))


def memory(device: torch.device) -> int:
    """Bytes of memory available on this device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as lines:
            for line in lines:
                if line.startswith("MemAvailable"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return machine_memory() // 2


def machine_memory() -> int:
    """Bytes of main memory of this machine, free or not; 8 GiB where the system does not say."""
    if sys.platform == "win32":
        status = (ctypes.c_ulong * 16)(64)  # MEMORYSTATUSEX: its size in bytes, then what it is asked for
        ctypes.windll.kernel32.GlobalMemoryStatusEx(status)
        return ctypes.c_uint64.from_buffer(status, 8).value
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 8 << 30


def cores() -> int:
    """Number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory(device: torch.device) -> int:
    """Peak memory of this process in bytes: of the GPU, or main memory; 0 where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:  # under Linux; getrusage would include the peak of the parent process
        status = Path("/proc/self/status").read_text()
        return 1024 * int(next(x for x in status.splitlines() if x.startswith("VmHWM")).split()[1])
    except (OSError, StopIteration):  # /proc is not there, or not Linux's
        pass
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def to_device(x: torch.Tensor, device: torch.device, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A copy on the device, made while this process goes on where that is safe.

    It is from pinned memory to a CUDA device. Elsewhere the source could be freed, or a copy to the host be
    read, before the copy is complete: on MPS that gives wrong numbers without an error.
    """
    return x.to(
        device, dtype, non_blocking=device.type == "cuda" and x.device.type == "cpu" and x.is_pinned()
    )


def synchronise(device: torch.device) -> None:
    """Wait until all work queued on the device is done; does nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def best_product(device: torch.device, dtype: torch.dtype, seconds: float = 1.0) -> float:
    """Measured peak rate of this device in FLOP/s: its fastest product of two square matrices.

    Takes about `seconds`. On a GPU the matrices are 8192 x 8192; on a CPU sizes grow while time allows, since
    the cost of packing the operands matters less in larger ones. A multiply-add counts as two operations.
    """
    tile = torch.randn(256, 256, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    sizes, repeats = ((1024, 2048, 4096, 8192), 1) if device.type == "cpu" else ((8192,), 8)
    best, end = 0.0, time.perf_counter() + seconds
    for number, size in enumerate(sizes):
        work = 2 * size**3 * repeats
        left = end - time.perf_counter()
        if best and work / best > left / 3:
            break
        a, b = tile.repeat(size // 256, size // 256), tile.T.repeat(size // 256, size // 256)
        out = torch.empty_like(a)
        torch.mm(a, b, out=out)  # warm-up
        until = time.perf_counter() + left / (len(sizes) - number)
        while True:
            synchronise(device)
            start = time.perf_counter()
            for _ in range(repeats):
                torch.mm(a, b, out=out)
            synchronise(device)
            now = time.perf_counter()
            best = max(best, work / (now - start))
            if now > until:
                break
    return best
