"""How omma's benchmarks measure time: all contenders are built first, then take turns in round-robin.

One process, two warm-ups each, and seven rounds or more. In each round every contender runs once, so that
other load on the machine affects all of them equally. The report has the best and the median round, and the
ratio to the best peer by round.
"""

import gc
import json
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from omma.core.device import best_product, keep_memory, synchronise
from omma.ops.cost import Flops

CPU = torch.device("cpu")
PACKAGES = (
    "omma", "torch", "torchvision", "lightly", "timm", "transformers",
    "pillow", "numba", "onnxruntime", "openvino",
)  # fmt: skip
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # those that decide what bf16 is worth


class Contender(NamedTuple):
    """A measured subject: `run` does the whole task once, on `images` images."""

    name: str
    run: Callable[[], Any]
    images: int
    ours: bool = False
    bf16: bool = False  # the precision of most of its products
    torch: bool = True  # does torch compute, so that its operations can be counted?


def contender_name(library: str, bf16: bool, variant: str = "") -> str:
    """A contender's name."""
    return f"{library} {'bf16' if bf16 else 'fp32'}{variant and ', ' + variant}"


def take_turns(
    contenders: Sequence[Contender],
    rounds: int,
    warm_ups: int = 2,
    device: torch.device = CPU,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each turn, by contender; freed memory is kept for all, as omma's command does."""
    keep_memory()
    for contender in contenders:
        for _ in range(warm_ups):
            contender.run()
    synchronise(device)
    seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    gc.collect()
    gc.disable()  # a collection would slow down one contender
    try:
        for _ in range(rounds):
            for contender in contenders:
                start = clock()
                contender.run()
                synchronise(device)
                seconds[contender.name].append(clock() - start)
            gc.collect()
    finally:
        gc.enable()
    return seconds


def summary(contenders: Sequence[Contender], seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Images/s of all contenders, and the ratio of omma's best to the peers' best (both by median)."""
    speeds = {
        c.name: {
            "best": c.images / min(seconds[c.name]),
            "median": c.images / statistics.median(seconds[c.name]),
            "worst": c.images / max(seconds[c.name]),
            "seconds": seconds[c.name],
        }
        for c in contenders
    }

    def best(ours: bool) -> Contender:
        return max((c for c in contenders if c.ours == ours), key=lambda c: speeds[c.name]["median"])

    us, peer = best(True), best(False)
    ratios = [
        (us.images / ours) / (peer.images / theirs)
        for ours, theirs in zip(seconds[us.name], seconds[peer.name], strict=True)
    ]
    return {
        "images_per_second": speeds,
        "headline": {
            "ours": us.name,
            "peer": peer.name,
            "ratio_median": statistics.median(ratios),
            "ratio_best": speeds[us.name]["best"] / speeds[peer.name]["best"],
            "rounds": ratios,
        },
    }


def add_work(result: dict[str, Any], contenders: Sequence[Contender], device: torch.device = CPU) -> None:
    """Add to a `summary` each contender's operations, and their share of the machine's best matrix product.

    Takes one more turn of each, and a second for each precision, after all timing is done.
    """
    limits = {
        bf16: best_product(device, torch.bfloat16 if bf16 else torch.float32)
        for bf16 in {contender.bf16 for contender in contenders}
    }
    for contender in filter(lambda contender: contender.torch, contenders):
        with Flops() as counted:
            contender.run()
        speed = result["images_per_second"][contender.name]
        rate = counted.total * speed["median"] / contender.images
        speed |= {"flops": counted.total, "flops_per_second": rate, "share": rate / limits[contender.bf16]}
    result["limit_flops_per_second"] = {"bf16" if bf16 else "fp32": limit for bf16, limit in limits.items()}


def machine() -> dict[str, Any]:
    """Hardware, versions and command, to record with figures."""
    name, flags = platform.processor() or platform.machine(), set()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
            elif key.strip() == "flags":
                flags = set(value.split())
    except OSError:
        pass
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "processor": name,
        "flags": [flag for flag in FLAGS if flag in flags],
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": versions,
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def headline() -> str:
    """Hardware, versions and command, in three lines."""
    description = machine()
    hardware = [
        description["processor"],
        f"{description['threads']} threads",
        " ".join(description["flags"]),
        description["gpu"],
    ]
    versions = ", ".join(f"{name} {number}" for name, number in description["versions"].items())
    return "\n".join((", ".join(filter(None, hardware)), versions, description["command"]))


def show(title: str, result: dict[str, Any], rounds: int) -> None:
    """Print a table."""
    ratio, speeds = result["headline"], result["images_per_second"]
    has_work = any("flops" in speed for speed in speeds.values())
    print(f"{title}, {rounds} rounds in turn\n{headline()}")
    print(
        f"{'images/s':38}{'best':>9}{'median':>9}{'worst':>9}"
        + has_work * f"{'GFLOP':>9}{'GFLOP/s':>9}{'share':>7}"
    )
    for name, speed in speeds.items():
        line = f"{name:38}{speed['best']:9.1f}{speed['median']:9.1f}{speed['worst']:9.1f}"
        if "flops" in speed:
            line += f"{speed['flops'] / 1e9:9.2f}{speed['flops_per_second'] / 1e9:9.1f}{speed['share']:7.1%}"
        print(line)
    for name, limit in result.get("limit_flops_per_second", {}).items():
        print(f"this machine's best matrix product in {name}: {limit / 1e9:,.0f} GFLOP/s")
    print(
        f"{ratio['ours']} / {ratio['peer']}: {ratio['ratio_median']:.2f} by round "
        f"({min(ratio['rounds']):.2f} to {max(ratio['rounds']):.2f}), best to best "
        f"{ratio['ratio_best']:.2f}\n"
    )


def save(file: Path | None, benchmark: str, protocol: str | None, results: list[dict[str, Any]]) -> None:
    """Write the record as JSON."""
    if file is None:
        return
    record = {
        "schema": 1,
        "benchmark": benchmark,
        "protocol": protocol,
        "machine": machine(),
        "results": results,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record, indent=1))
