"""A run's first steps on trial: timed, made to fit into memory, compiled if that pays."""

import contextlib
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from omma.core import dist
from omma.core.protocols import Batch
from omma.data.batches import loader
from omma.pretraining import requirements
from omma.pretraining import run as runs
from omma.pretraining.run import Run
from omma.train import compile_blocks, fsdp, out_of_memory, resolution
from omma.train.budget import MOST, trial
from omma.train.loop import moved
from omma.train.pace import Pace


def find_sizes(run: Run, stack: contextlib.ExitStack) -> tuple[loader.Stream, Iterator[Batch], float]:
    """The stream, open until `stack` closes, its batches from the first on, and seconds a step.

    A run that begins with sizes that the user did not set takes smaller micro-batches until they fit into
    memory.
    """
    before = run.position.batch, run.accumulate
    is_open = run.sized is not None and run.position.step == 0 and not fsdp.sharded(run.method)
    while True:
        stream = stack.enter_context(runs.stream(run))
        batches, step_time = runs.batches(run, stream), None
        if is_open or run.compile == "on":
            why, step_time, batches = _attempted(run, batches)
            if is_open and why == out_of_memory.LACKING:
                stack.close()
                _shrink(run)
                continue
            if why:
                raise _out_of_memory(run) if why == out_of_memory.LACKING else _not_compilable(run, why)
        if step_time is None or dist.is_distributed():  # one process alone is faster than all together
            step_time, batches = _timed(run, batches)
        if (run.position.batch, run.accumulate) != before:
            _record_sizes(run, *before)
        return stream, batches, step_time


def _timed(run: Run, batches: Iterator[Batch]) -> tuple[float, Iterator[Batch]]:
    """Seconds a step, and all batches from the first on."""
    used: list[Batch] = []
    return _trial(run, batches, used), _from_first(run, batches, used)


def _attempted(run: Run, batches: Iterator[Batch]) -> tuple[str, float, Iterator[Batch]]:
    """Why steps fail, "" if they do not; seconds a step, and all batches from the first on.

    The reason is `out_of_memory.LACKING` or the compiler's, on whichever process. Each process tries on its
    own, so that none waits for one that failed; two steps are enough then.
    """
    used: list[Batch] = []
    why: str | None = ""
    step_time, most = math.inf, 2 if dist.is_distributed() else MOST
    try:
        with dist.on_this_process():
            step_time = _trial(run, batches, used, most)
    except RuntimeError as error:
        why = out_of_memory.LACKING if out_of_memory.ran_out(error) else compile_blocks.failed(error)
        if why is None:
            raise
    return next(filter(None, dist.gather_objects(why)), ""), step_time, _from_first(run, batches, used)


def _trial(run: Run, batches: Iterator[Batch], used: list[Batch], most: int = MOST, at: float = 1.0) -> float:
    return trial(
        run.method, run.optimizer, batches, run.choice.recipe, run.position,
        dtype=run.dtype, accumulate=run.accumulate, used=used, most=most, at=at,
    )  # fmt: skip


def _from_first(run: Run, batches: Iterator[Batch], used: list[Batch]) -> Iterator[Batch]:
    return itertools.chain((moved(batch, run.device) for batch in used), batches)


def faster(run: Run, batches: Iterator[Batch], step_time: float) -> tuple[float, Iterator[Batch]]:
    """Compile the blocks, and leave them so if steps take less time; returns what `_timed` does."""
    compile_blocks.start(run.method)
    why, quick, batches = _attempted(run, batches)
    if not why:
        if dist.is_distributed():
            quick, batches = _timed(run, batches)
        if quick < step_time:
            run.notes.append(f"blocks are compiled: {step_time / quick:.2f} times as fast")
            _revise(run, {"compile": True})
            return quick, batches
        why = "steps took no less time"
    compile_blocks.stop(run.method)
    run.notes.append(f"blocks are not compiled: {why}")
    return step_time, batches


def pace(run: Run, batches: Iterator[Batch], step_time: float) -> tuple[Pace, Iterator[Batch]]:
    """Seconds a step in each part of the run, and all batches from the first on; step_time: at full size."""
    parts, used = list[tuple[float, float]](), list[Batch]()
    for until, scale in run.choice.recipe.stages():
        seconds = step_time
        if scale != 1.0:
            tried = list[Batch]()
            seconds = _trial(run, _from_first(run, batches, used), tried, at=until)
            used += tried[len(used) :]
        parts.append((until, seconds))
    return Pace(tuple(parts)), _from_first(run, batches, used)


def smaller_views(run: Run) -> list[str]:
    """A line for each part of the run whose views are smaller than planned."""
    parts, total = run.clock.pace.parts, run.position.total
    return [
        f"until {until:.0%} of the run: {' and '.join(f'{size} px' for size in _sizes(run, scale))}, "
        f"{parts[-1][1] / parts[part][1]:.1f} times as fast (to step {round(until * total):,})"
        for part, (until, scale) in enumerate(run.choice.recipe.resolution)
    ]


def _sizes(run: Run, scale: float) -> list[int]:
    """Sides of the views at this scale, in pixels."""
    return sorted({resolution.side(crop.size, scale, run.method.encoder.patch) for crop in run.crops})


def compiling_pays(run: Run) -> float:
    """Seconds that a run must take at least for compiling to pay."""
    sizes = {size for _, scale in run.choice.recipe.stages() for size in _sizes(run, scale)}
    return compile_blocks.PAYS * compile_blocks.seconds(run.method, len(sizes))


def _why_whole(run: Run) -> str:
    """Why a batch cannot be computed in micro-batches: what compares its images; "" if nothing does."""
    needs = requirements.needs_of(run.choice.method, run.choice.recipe.config)
    if needs.batch > 1:
        return needs.why_batch
    modules = run.method.train().modules()  # statistics of frozen parts stay fixed
    moving = any(isinstance(m, _BatchNorm) and m.training for m in modules)
    return "its batch norms compare images" if moving else ""


def _shrink(run: Run) -> None:
    """Compute half as much at a time: more micro-batches or, if images are compared, a smaller batch.

    Raises ValueError if nothing can be smaller.
    """
    assert run.sized is not None
    if run.device.type != "cpu":
        torch.accelerator.empty_cache()
    share, compared = run.position.batch // dist.world_size(), bool(_why_whole(run))
    at_a_time, least = share // run.accumulate, 2 if compared else 1
    if at_a_time < 2 * least:
        raise ValueError(
            f"out of memory on {run.device}, even with {at_a_time} images at a time: choose a smaller "
            "--model or --image-size, or try --recompute"
        )
    if compared:
        run.choice = run.sized(share // 2 * dist.world_size())
        run.position.batch = run.choice.recipe.batch
    else:
        run.accumulate = out_of_memory.more_micro_batches(share, run.accumulate)


def _record_sizes(run: Run, batch: int, accumulate: int) -> None:
    """Note how a step was made to fit, and record it for when the run is resumed."""
    recipe = run.choice.recipe
    if run.accumulate != accumulate:
        how = f"computed in {run.accumulate} micro-batches"
    else:
        how = f"{recipe.batch} instead, learning rate {recipe.lr:.2g} ({_why_whole(run)})"
    run.notes.append(f"a batch of {batch} does not fit into memory: {how}")
    fitted = {"batch": recipe.batch, "accumulate": run.accumulate}
    _revise(run, {"settings": recipe.settings(), "accumulate": run.accumulate, "fitted": fitted})


def _revise(run: Run, config: Mapping[str, Any]) -> None:
    with dist.propagate_errors():
        if run.primary:
            run.folder.revise(config)


def _out_of_memory(run: Run) -> ValueError:
    parts = f" in {run.accumulate} micro-batches" if run.accumulate > 1 else ""
    return ValueError(
        f"out of memory on {run.device} with a batch of {run.position.batch}{parts}: give a smaller "
        "--batch-size or a larger --accumulate, or try --recompute"
    )


def _not_compilable(run: Run, why: str) -> ValueError:
    return ValueError(
        f"the blocks of {run.choice.model} cannot be compiled here ({why}): give --compile off, or install "
        "a C++ compiler (g++) if that is what is missing"
    )


@contextlib.contextmanager
def explained(run: Run) -> Iterator[None]:
    """Turn an error for want of memory, or of the compiler, into one line with the remedy."""
    try:
        yield
    except RuntimeError as error:
        if out_of_memory.ran_out(error):
            raise _out_of_memory(run) from error
        if why := compile_blocks.failed(error):
            raise _not_compilable(run, why) from error
        raise
