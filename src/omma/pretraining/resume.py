"""How a run starts: from its newest checkpoint, to the end that was asked for."""

import math
from collections.abc import Mapping
from typing import Any

from omma import weights
from omma.core import dist
from omma.core.words import count
from omma.pretraining import health
from omma.pretraining.events import Note, Result
from omma.pretraining.request import Request
from omma.pretraining.run import Run
from omma.train import checkpoint

READINGS = ("health", "holdout")  # events of metrics.jsonl


def restore(run: Run) -> None:
    """Load the newest whole checkpoint, if there is one."""
    saved, damaged = checkpoint.newest(run.folder.checkpoints, together=True)
    dist.require_same("checkpoints", str(saved and saved.step))
    if saved is None:
        if damaged:
            raise ValueError(
                f"no checkpoint of {run.folder.path} is whole ({'; '.join(damaged)}): remove "
                f"{run.folder.checkpoints} to train from the start again"
            )
        if (run.folder.path / weights.WEIGHTS).exists():
            raise ValueError(
                f"{run.folder.path / weights.WEIGHTS} is damaged and no checkpoint is left to write it from: "
                "choose another --out, or remove it to train from the start again"
            )
        if run.primary and run.folder.metrics():  # of a run that was killed before its first checkpoint
            run.folder.rewind(-1)
        return
    run.notes += damaged
    checkpoint.restore(saved, run.method, run.optimizer)
    run.position.step, run.position.total = saved.step, saved.total
    run.clock.before = saved.elapsed
    # the sample may be another by now
    run.watcher.restore(saved.notes, changed=bool(run.folder.config().get("data_changes")))
    if run.primary:
        checkpoint.set_aside(run.folder.checkpoints, saved.step)
        if left_out := run.folder.rewind(saved.step):
            run.notes.append(f"metrics.jsonl: {left_out} damaged lines are left out")


def finished_before(run: Run, origin: Mapping[str, Any]) -> Result:
    run.listen(Note(f"{run.folder.path} is finished: --extend continues it, another --out trains again"))
    return Result(
        out=run.folder.path,
        steps=int(origin.get("steps", 0)),
        seconds=float(origin.get("seconds", 0.0)),
        verdict=last_verdict(run),
    )


def last_verdict(run: Run, step: int = 0) -> health.Verdict | None:
    """That of the last reading from `step` on, if it is in metrics.jsonl."""
    lines = run.folder.metrics()
    readings = [line for line in lines if line["event"] in READINGS and line["step"] >= step]
    return health.logged(readings[-1]) if readings else None


def length(run: Run, request: Request) -> int:
    """Steps of the whole run: those asked for, or as many as the budget allows at the run's pace."""
    clock, position = run.clock, run.position
    left = 0.0 if clock.budget is None else clock.budget - clock.elapsed - clock.reserve
    by_epochs = math.ceil((request.epochs or 0) * position.images / position.batch)
    steps = request.steps or by_epochs or clock.pace.total(position.step, left)
    return dist.broadcast(max(1, steps))


def shorter_warmup(run: Run) -> list[str]:
    """A line if the run is too short for the warm-up that its recipe states."""
    recipe, clock = run.choice.recipe, run.position.clock()
    if not recipe.shortened(clock):
        return []
    steps, length = round(recipe.warmup_steps(clock)), recipe.warmup_length
    stated = f"{recipe.warmup_epochs:g} epochs" if length is None else count(length, "step")
    return [
        f"warm-up: {steps:,} of the run's {count(clock.total, 'step')}; the {stated} of the recipe "
        f"{run.choice.recipe_name} are too long for {clock.epochs:.3g} epochs"
    ]


def extend(run: Run, request: Request) -> None:
    """Record that the run, which was to end earlier, ends where the user says now.

    Raises ValueError if it is past that already.
    """
    step, total, config = run.position.step, run.position.total, run.folder.config()
    if total <= step:
        raise ValueError(f"{run.folder.path} has made {step:,} steps already: give --extend a later end")
    history = [*config.get("extended", ()), {"step": step, "end": config["end"]}]
    with dist.propagate_errors():
        if run.primary:
            run.folder.revise({"end": request.end, "extended": history})
    run.notes.append(
        f"extended to {total:,} steps: schedules are stretched, so the learning rate is that of step "
        f"{step:,} of so many"
    )
