"""Where and in which precision to compute, and why."""

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
    """ "auto": CUDA, else MPS, else CPU. Raises ValueError for one that is not there.

    Of several processes on this machine each has the GPU of its own number.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return _own_gpu()
        alone = launcher.ranks().world_size == 1
        return torch.device("mps" if torch.backends.mps.is_available() and alone else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device {name!r}: choose auto, cpu, cuda or mps") from None
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(device.type, False):
        raise ValueError(f"device {name!r} is not available on this machine: use --device auto")
    if name == "cuda":
        return _own_gpu()
    if launcher.ranks().world_size > 1 and device.type != "cpu":
        raise ValueError(
            f"device {name!r} is one for several processes: use --device auto, which gives each its own"
        )
    return device


def _own_gpu() -> torch.device:
    """The only one that this process sees or uses, or, of several processes, that of its number."""
    here, count = launcher.ranks(), torch.cuda.device_count()
    if here.world_size == 1:
        return torch.device("cuda")
    if here.local_rank >= count:
        raise ValueError(
            f"{count} GPUs for {here.local_world_size} processes on this machine: "
            f"start --nproc-per-node {count}"
        )
    return torch.device("cuda", here.local_rank)


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """ "auto": bf16 where it is faster: newer NVIDIA GPUs, and CPUs where a short measurement says so."""
    if name == "fp8":
        raise ValueError("precision fp8 gains little at the widths of ViTs (docs/adr/0013): choose bf16")
    if name != "auto":
        if name not in PRECISIONS:
            raise ValueError(f"precision {name!r}: choose auto, {' or '.join(PRECISIONS)}")
        return PRECISIONS[name]
    return torch.bfloat16 if explain_precision(device)[0] else torch.float32


def precision_name(dtype: torch.dtype) -> str:
    """The option that stands for this type."""
    return next(name for name, each in PRECISIONS.items() if each == dtype)


def explain_precision(device: torch.device) -> tuple[bool, str]:
    """Is bf16 worth it on this device, and the reason in a sentence."""
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
            f"bf16: measured {gain:.1f} times as fast as fp32 in a transformer's products on this CPU",
        )
    return False, f"fp32: bf16 measured {gain:.1f} times as fast as fp32 on this CPU, too little to gain"


@functools.cache
def cpu_gain() -> float:
    """How many times faster bf16 is than fp32 in an MLP's forward and backward pass; half a second, once."""

    def run(dtype: torch.dtype) -> float:
        x = torch.ones(4096, 192, dtype=dtype, requires_grad=True)
        w = torch.ones(768, 192, dtype=dtype, requires_grad=True)
        start = time.perf_counter()
        F.gelu(F.linear(x, w)).sum().backward()
        return time.perf_counter() - start

    for dtype in (torch.float32, torch.bfloat16):
        run(dtype)  # the first calls are slow
    pairs = [(run(torch.float32), run(torch.bfloat16)) for _ in range(9)]
    return statistics.median(a for a, _ in pairs) / statistics.median(b for _, b in pairs)


def keep_memory() -> None:
    """Let this process keep the memory it frees, for its next tensors; nothing without glibc.

    glibc gives large blocks back to the system and gets fresh pages for each new tensor; on virtual machines
    those page faults take up to half of a step on the CPU. It holds for the whole process, so it is a
    program's choice: the command line makes it, the library does not.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # malloc.h
    mallopt(mmap_threshold, 32 << 20)  # the most that glibc takes
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 64 << 20)


def share_cores() -> None:
    """Divide this machine's cores among the processes that torchrun started on it, which takes one for each.

    OMP_NUM_THREADS above 1 is somebody's wish and left as it is; 1 is what torchrun sets. A program's choice,
    as `keep_memory` is.
    """
    here = launcher.ranks()
    if here.local_world_size > 1 and os.environ.get("OMP_NUM_THREADS", "1") == "1":
        torch.set_num_threads(max(1, cores() // here.local_world_size))


def memory(device: torch.device) -> int:
    """Bytes of memory free for use on this device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as lines:
            for line in lines:
                if line.startswith("MemAvailable"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory(device: torch.device) -> int:
    """Bytes that this process has used at most: of the GPU, or of main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "linux":  # getrusage's is at least that of the process which started this one
        status = Path("/proc/self/status").read_text()
        return 1024 * int(next(x for x in status.splitlines() if x.startswith("VmHWM")).split()[1])
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def synchronise(device: torch.device) -> None:
    """Wait until what was started there is done; on a CPU it is."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def best_product(device: torch.device, dtype: torch.dtype, seconds: float = 1.0) -> float:
    """What this device can do at most: operations a second in its fastest product of square matrices.

    Measured, in about `seconds`: 8192 x 8192 on a GPU; on a CPU growing sizes, as far as the time goes, for
    the larger ones bear the cost of rearranging their numbers better. An addition and a multiplication count
    apart.
    """
    tile = torch.randn(256, 256, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    sizes, at_a_time = ((1024, 2048, 4096, 8192), 1) if device.type == "cpu" else ((8192,), 8)
    best, end = 0.0, time.perf_counter() + seconds
    for number, size in enumerate(sizes):
        work = 2 * size**3 * at_a_time
        left = end - time.perf_counter()
        if best and work / best > left / 3:
            break
        a, b = tile.repeat(size // 256, size // 256), tile.T.repeat(size // 256, size // 256)
        out = torch.empty_like(a)
        torch.mm(a, b, out=out)  # the first is slow
        until = time.perf_counter() + left / (len(sizes) - number)
        while True:
            synchronise(device)
            start = time.perf_counter()
            for _ in range(at_a_time):
                torch.mm(a, b, out=out)
            synchronise(device)
            now = time.perf_counter()
            best = max(best, work / (now - start))
            if now > until:
                break
    return best
