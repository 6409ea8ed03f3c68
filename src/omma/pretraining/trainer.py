"""One sitting of a run: taken up where it stands, tried, planned, trained, watched and saved."""

import contextlib
import dataclasses
import json
import math
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from omma import weights
from omma.core import device as machine
from omma.core import dist, files, launcher
from omma.core.protocols import Batch
from omma.data.batches import augment, loader
from omma.data.sources import collection
from omma.pretraining import health, input_bound, trial
from omma.pretraining.events import Note, Plan, Progress, Read, Result
from omma.pretraining.run import Run
from omma.train import checkpoint, compile_blocks, fine_tune_groups, fsdp
from omma.train.loop import Position, Step, train
from omma.train.profile import Profiler
from omma.train.signals import stop_on_signals

READINGS = 20  # of health, over a run, if they can be had ...
READING_SHARE = 0.05  # ... in this share of its time
LOGGED = 200  # lines of metrics, over a run
REJECTED = 3  # steps in a row that may be lost to numbers that are not finite


class Diverged(ValueError):
    """Loss or gradient was not finite several steps in a row."""


def sit(run: Run, *, epochs: float | None, steps: int | None, checkpoint_every: float) -> Result:
    """Take the run up where it stands and train to its end, or until asked to stop."""
    _resume(run)
    position, clock, folder = run.position, run.clock, run.folder
    if dist.broadcast(folder.finished):
        done = [line for line in folder.metrics() if line.get("event") == "health"]
        verdict = health.Verdict(done[-1]["verdict"], done[-1]["text"]) if done else None
        run.listen(Note(f"{folder.path} is finished; choose another --out to train again"))
        return Result(out=folder.path, steps=position.step, seconds=clock.elapsed, verdict=verdict)
    if run.cache is not None:
        with dist.propagate_errors():
            run.cache.write(lambda text: run.listen(Note(text)))
        run.notes.append(f"images are read from a cache of {run.cache.describe()}")
    if run.compile == "on":
        compile_blocks.start(run.method)
    with contextlib.ExitStack() as held, trial.explained(run):
        stream, batches, step_time = trial.tried(run, held)

        def length() -> int:
            left = 0.0 if clock.budget is None else clock.budget - clock.elapsed - clock.reserve
            by_epochs = math.ceil((epochs or 0) * position.images / position.batch)
            return dist.broadcast(max(1, steps or by_epochs or int(left / step_time)))

        if position.step == 0:
            if run.compile == "auto" and length() * step_time > trial.compiling_pays(run):
                step_time, batches = trial.faster(run, batches, step_time)
            position.total = length()
        if dist.is_distributed():
            run.notes.append(
                f"{dist.world_size()} processes, {position.batch // dist.world_size()} images of a step each"
            )
        run.listen(_plan(run, step_time))
        return _train(run, stream, batches, checkpoint_every)


def _resume(run: Run) -> None:
    """Take up the newest checkpoint, if there is one."""
    saved, damaged = checkpoint.newest(run.folder.checkpoints)
    dist.require_same("checkpoints", str(saved and saved.step))
    run.notes += damaged
    if saved is None:
        if run.primary and run.folder.metrics():  # of a run that was killed before its first checkpoint
            run.folder.rewind(-1)
        return
    checkpoint.restore(saved, run.method, run.optimizer)
    run.position.step, run.position.total = saved.step, saved.total
    run.clock.before = saved.elapsed
    run.monitor.restore(saved.notes)
    if run.primary:
        run.folder.rewind(saved.step)


def _plan(run: Run, step_time: float) -> Plan:
    left = run.position.total - run.position.step
    return Plan(
        images=run.described,
        used=len(run.images),
        skipped=len(run.skipped),
        choice=run.choice,
        parameters=sum(p.numel() for p in run.method.export_encoder().parameters()),
        views=tuple(augment.describe(run.crops, run.images.channels)),
        device=str(run.device),
        precision=str(run.dtype).removeprefix("torch."),
        images_per_second=run.position.batch / step_time,
        steps=run.position.total,
        seconds=left * step_time,
        peak_memory=machine.peak_memory(run.device),
        out=run.folder.path,
        resumed_at=run.position.step,
        notes=tuple(run.notes),
    )


def _feeding(run: Run, stream: loader.Stream) -> input_bound.Feeding:
    return input_bound.Feeding(
        in_memory=stream.in_memory,
        decodes=run.cache is None and run.images.encoded,
        workers=stream.workers,
        cores=max(1, machine.cores() // launcher.ranks().local_world_size),
        busy=torch.get_num_threads() if run.device.type == "cpu" else 1,
        side=run.shorter_side,
        enough=augment.at_least(run.crops),
    )


def _train(run: Run, stream: loader.Stream, batches: Iterator[Batch], checkpoint_every: float) -> Result:
    """The loop with what surrounds it: readings, metrics, checkpoints, the end."""
    position, clock = run.position, run.clock
    recent: list[Mapping[str, float]] = []
    verdict: health.Verdict | None = None
    rejected = 0
    saved_at = pace = started = time.monotonic()
    waited, first, advised, feeding = stream.waited, position.step, False, _feeding(run, stream)
    skipped = dict(run.skipped)
    frozen = fine_tune_groups.share_frozen(run.optimizer.param_groups)
    writer = _writer(run.folder.path) if run.primary else None

    looked_at, cost = started, 0.0  # when health was read last, and how long that took

    def look() -> health.Verdict:
        nonlocal looked_at, cost
        began = time.monotonic()
        reading, verdict, knn, kept = run.monitor.read(
            _seen(run), position.step, position.clock().progress, recent
        )
        recent.clear()
        line = {"event": "health", "step": position.step, **dataclasses.asdict(reading)}
        line |= {"verdict": verdict.level, "text": str(verdict)}
        line |= {} if knn is None else {"online_knn_top1": knn}
        line |= {} if kept is None else kept.metrics()
        _log(run, writer, line)
        run.listen(Read(step=position.step, verdict=verdict, knn=knn, retained=kept))
        looked_at = time.monotonic()
        cost = looked_at - began
        return verdict

    def say() -> tuple[float, ...]:
        """What every process is asked to do, and what process 0's clock says; its word is all's."""
        now = time.monotonic()
        overdue, cheap = now - saved_at > checkpoint_every, now - looked_at > cost / READING_SHARE
        times = (clock.elapsed, float(overdue), float(cheap)) if run.primary else (0.0, 0.0, 0.0)
        return float(bool(stop)), *times

    stopping: float = 0  # how many processes were asked to stop
    if not run.monitor.readings:
        look()
    with stop_on_signals() as stop, contextlib.closing(run.watch):
        loop = train(
            run.method, run.optimizer, batches, run.choice.recipe, position,
            dtype=run.dtype, accumulate=run.accumulate, seed=run.seed, local_values=say, watch=run.watch,
        )  # fmt: skip
        for step in loop:
            now = time.monotonic()
            if step.rejected is None:
                rejected = 0
                recent.append(step.metrics)
            else:
                rejected += 1
                _reject(run, step, rejected)
            # one process says it now, when the step is done; several have heard it within the step
            stopping, elapsed, overdue, cheap = step.summed if dist.is_distributed() else say()
            clock.correct(position, steady=position.clock().progress > frozen, elapsed=elapsed)
            rate = position.batch / max(now - pace, 1e-9)
            left = (position.total - position.step) * (now - started) / (position.step - first)
            pace = now
            share = (stream.waited - waited) / max(now - started, 1e-9)
            run.listen(
                Progress(
                    step=position.step, total=position.total, loss=step.loss, images_per_second=rate,
                    seconds_left=left, waiting=share,
                )
            )  # fmt: skip
            if not advised and (said := input_bound.remedy(share, position.step - first, feeding)):
                advised = True
                run.listen(Note(said))
            if _due(position, LOGGED):
                line = {"event": "step", "step": position.step, "loss": step.loss, "lr": step.lr}
                line |= {"gradient_norm": step.gradient_norm, "images_per_second": rate, **step.metrics}
                _log(run, writer, line | {"elapsed": clock.elapsed})
            looked = position.step >= position.total or (_due(position, READINGS) and bool(cheap))
            if looked:
                verdict = look()
            if fresh := _bad(stream, looked or bool(stopping)):  # listed like those found before
                skipped |= {run.images.path(i): reason for i, reason in fresh}
                if run.primary:
                    collection.write_skipped(run.folder.path / "skipped.csv", skipped.items())
            if stopping or overdue:
                _save(run)
                saved_at = time.monotonic()
            if stopping:
                run.listen(Note(f"stopped after step {position.step}; the same command resumes"))
                break
            _tell_profile(run)
            pace = time.monotonic()
    _tell_profile(run)
    if isinstance(run.watch, Profiler) and not run.watch.reported:
        run.listen(Note("no profile: it takes two steps at least"))
    if not stopping:
        verdict = verdict or look()
        _save(run)
        kept = run.method.export_encoder()
        if fsdp.sharded(kept):
            kept = fsdp.gather_encoder(kept)
        if run.primary:
            assert kept is not None
            provenance = {
                **run.folder.config(),
                "part": run.part,
                "steps": position.step,
                "seconds": clock.elapsed,
            }
            weights.save(run.folder.path, kept, run.preprocess, provenance, run.method.extras())
    if writer is not None:
        writer.close()
    return Result(
        out=run.folder.path,
        steps=position.step,
        seconds=clock.elapsed,
        verdict=verdict,
        stopped_by=(stop.signal or signal.SIGTERM) if stopping else None,  # it may have met another process
    )


def _tell_profile(run: Run) -> None:
    """Once it is known: to the listener and the run folder."""
    found = run.watch.pop_profile(run.position.batch)
    if found is not None:
        with files.whole(run.folder.path / "profile.json") as file:
            file.write_text(json.dumps(found.record(), indent=1) + "\n", encoding="utf-8")
        run.listen(found)


def _bad(stream: loader.Stream, together: bool) -> list[tuple[int, str]]:
    """Images met since the last time that cannot be read; those of several processes now and then."""
    if dist.is_distributed() and not together:
        return []
    return [each for theirs in dist.gather_objects(stream.new_bad()) for each in theirs]


def _due(position: Position, times: int) -> bool:
    """Does the step just done end one of `times` equal parts of the run?"""
    part = position.total / min(times, position.total)
    return position.step >= position.total or int(position.step / part) > int((position.step - 1) / part)


def _reject(run: Run, step: Step, in_a_row: int) -> None:
    """Keep the batch that broke the numbers; end the run when it happens again and again."""
    assert step.rejected is not None
    who = f"-process-{dist.rank()}" if dist.rank() else ""  # each its own: one of them broke it
    path = run.folder.path / f"rejected-step-{step.clock.step}{who}.safetensors"
    tensors = {
        f"part{i}.views{j}": view.contiguous().cpu()
        for i, batch in enumerate(step.rejected)
        for j, view in enumerate(batch.views)
    }
    save_file(tensors, str(path))
    run.listen(
        Note(f"step {step.clock.step}: loss or gradient is not finite; skipped, batch kept in {path.name}")
    )
    if in_a_row < REJECTED:
        return
    saved = checkpoint.paths(run.folder.checkpoints)
    where = f"the last good checkpoint is {saved[-1]}" if saved else "no checkpoint was written yet"
    raise Diverged(
        f"the loss was not finite in {in_a_row} steps in a row, at step {step.clock.step} (learning rate "
        f"{step.lr:.2g}); {where}: lower --lr, or try --precision fp32"
    )


def _seen(run: Run) -> torch.nn.Module:
    """What health is read on: the encoder, or one that computes as its spread blocks do."""
    kept = run.method.export_encoder()
    return fsdp.CastEncoder(kept, run.dtype) if fsdp.sharded(kept) and run.dtype != torch.float32 else kept


def _save(run: Run) -> None:
    if not run.primary and not fsdp.sharded(run.method):
        return
    checkpoint.save(
        run.folder.checkpoints, run.method, run.optimizer,
        step=run.position.step, total=run.position.total, elapsed=run.clock.elapsed,
        notes=run.monitor.state(),
    )  # fmt: skip


def _writer(folder: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter  # takes a while to import

    return SummaryWriter(str(folder))


def _log(run: Run, writer: Any, line: Mapping[str, Any]) -> None:
    """A line of metrics.jsonl, and its numbers for TensorBoard."""
    if not run.primary:
        return
    run.folder.log(line)
    for name, value in line.items():
        if isinstance(value, float):
            writer.add_scalar(f"{line['event']}/{name}", value, line["step"])
