"""What each of several processes does in verbs/test_processes.py: several runs, one after another."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import torch

from omma.core import dist, launcher
from omma.data.sources.collection import ArrayImages
from omma.pretraining.events import Plan, Progress
from omma.reporting import run_report
from omma.train import fsdp
from omma.verbs.finetune import finetune
from omma.verbs.pretrain import pretrain

BASE = {
    "model": "vit-n/4",
    "model_options": {"depth": 3},
    "batch_size": 8,
    "image_size": 16,
    "device": "cpu",
    "precision": "fp32",
    "steps": 4,
}
DINO = {"method": "dino", "options": {"prototypes": 32, "head_hidden": 32, "head_bottleneck": 16}}
# freeze_last_epochs: what is trained changes within the run; 3 steps are an epoch of the 24 images
RUNS = {
    "simclr": {"method": "simclr"},
    "dino": {**DINO, "options": {**DINO["options"], "freeze_last_epochs": 1}},
    "accumulated": {"method": "mae", "accumulate": 2},
    "tuned": {"tuned": True, "adapt": "full", "options": {"ema": 0.5}},
}
# with and without recomputed activations
SHARDED = {
    "dino": {**RUNS["dino"], "shard": "fsdp"},
    "accumulated": {**RUNS["accumulated"], "shard": "fsdp", "recompute": True},
}


def pictures(labelled: bool = False) -> ArrayImages:
    """24 images, bright on the left or on the right."""
    pixels = np.random.default_rng(0).integers(0, 120, (24, 16, 16, 3), dtype=np.uint8)
    pixels[::2, :, :8] += 120
    pixels[1::2, :, 8:] += 120
    return ArrayImages(pixels, np.arange(24) % 2, ("left", "right")) if labelled else ArrayImages(pixels)


def run(out: Path, listen=lambda event: None, **options):
    """One run; `tuned`: of a classifier, from the weights in `start` beside it or above."""
    if options.pop("tuned", False):
        start = next(path / "start" for path in out.parents if (path / "start").exists())
        kept = BASE.keys() - {"model", "model_options", "image_size"}
        base = {name: BASE[name] for name in kept}
        return finetune(start, pictures(labelled=True), out=out, listen=listen, **{**base, **options})
    return pretrain(pictures(), out=out, listen=listen, **{**BASE, **options})


def resumed(out: Path, **options) -> list[int]:
    """The step that a run goes on from, and the one that it ends after."""
    plans: list[Plan] = []
    result = run(out, lambda event: plans.append(event) if isinstance(event, Plan) else None, **options)
    return [plans[0].resumed_at, result.steps]


def asked_to_stop_at(step: int, rank: int):
    """A listener that sends one of the processes a SIGTERM."""

    def listen(event) -> None:
        if isinstance(event, Progress) and event.step == step and launcher.ranks().rank == rank:
            os.kill(os.getpid(), signal.SIGTERM)

    return listen


def refused(out: Path, **options) -> dict[str, str]:
    try:
        run(out, **options)
    except ValueError as error:
        return {"kind": type(error).__name__, "text": str(error)}
    return {}


def propagated(rank: int) -> str:
    """What all processes learn of an error of the first."""
    try:
        with dist.propagate_errors():
            if rank == 0:
                raise ValueError("of one is of all")
    except ValueError as error:
        return str(error)
    return "nothing"


def two(folder: Path) -> dict:
    """What two processes do."""
    results: dict = {}
    for name, options in RUNS.items():
        run(folder / name, **options)
    for name, options in SHARDED.items():
        run(folder / f"{name}-sharded", **options)
    results["bf16"] = run(folder / "bf16", **{**RUNS["dino"], "precision": "bf16"}).steps
    run(folder / "bf16-sharded", **{**SHARDED["dino"], "precision": "bf16", "recompute": True})
    plans: list[Plan] = []
    length = {"budget": "2s", "steps": None}
    budgeted = run(folder / "budget", lambda e: plans.append(e) if isinstance(e, Plan) else None, **length)
    results["budget"] = budgeted.steps
    results["planned"] = [plan.steps for plan in plans]
    # SIGTERM to the second process only: all stop after the same step, and save
    for name, options in (("stopped", SHARDED["dino"]), ("stopped-whole", RUNS["dino"])):
        result = run(folder / name, asked_to_stop_at(1, 1), **options)
        results[name] = [result.steps, result.stopped_by]
    return results


def main(world: int, folder: Path) -> None:
    run_report.write_report = lambda folder, *args: folder.report
    here = launcher.ranks()
    assert (here.world_size, here.local_world_size) == (world, world)
    results = {}
    if world == 2:
        results = two(folder)
    else:  # goes on with what two have stopped
        results["four"] = resumed(folder / "stopped-four", **SHARDED["dino"])
        results["four whole"] = resumed(folder / "stopped-whole-four", **SHARDED["dino"])
    with dist.process_group():
        assert not fsdp.sharded(torch.nn.Linear(1, 1))
        results["sums"] = dist.sum_floats([1.0, here.rank])
        results["broadcast"] = dist.broadcast(here.rank + 5)
        results["propagated"] = propagated(here.rank)
    # the configuration differs, which only process 0 sees
    results["refused"] = refused(folder / "simclr" if world == 2 else folder / "stopped-four", lr=0.5)
    (folder / f"results-{world}-{here.rank}.json").write_text(json.dumps(results))
