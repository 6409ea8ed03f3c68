"""One session of a run: resumed, tried, planned, trained, watched and saved."""

import contextlib
import dataclasses
import json
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save

from omma import weights
from omma.backbones import adapters
from omma.core import device as devices
from omma.core import dist, files, launcher
from omma.core.protocols import Batch
from omma.data.batches import augment, loader
from omma.data.sources.skipped import found_before, write_skipped
from omma.pretraining import expectation, first_head, input_bound, resume, trial
from omma.pretraining.events import Note, Plan, Progress, Result
from omma.pretraining.folder import RunFolder
from omma.pretraining.metrics_log import MetricsLog
from omma.pretraining.readings import Readings
from omma.pretraining.request import Request
from omma.pretraining.run import Run
from omma.pretraining.watch import ends_part
from omma.train import checkpoint, compile_blocks, fine_tune_groups, fsdp, loop
from omma.train.loop import Step
from omma.train.pace import Pace
from omma.train.profile import Profiler
from omma.train.signals import Stop, stop_on_signals
from omma.weights import peft_format

LOGGED = 200  # lines of metrics, over a run
REJECTED = 3  # steps in a row that may be lost to numbers that are not finite


class Diverged(ValueError):
    """Loss or gradient was not finite several steps in a row."""


def train(run: Run, request: Request) -> Result:
    """Resume the run from its newest checkpoint and train to its end, or until asked to stop."""
    extending = request.extend and dist.broadcast(run.folder.config().get("end")) != request.end
    result = run.folder.result(thorough=True) if run.primary and not extending else None
    if (result := dist.broadcast(result)) is not None:
        return resume.finished_before(run, result)
    resume.restore(run)
    first_head.fit(run)
    if run.cache is not None:
        with dist.propagate_errors():
            run.cache.write(lambda text: run.listen(Note(text)))
        run.notes.append(f"images are read from a cache of {run.cache.describe()}")
    if run.compile == "on":
        compile_blocks.start(run.method)
    with contextlib.ExitStack() as stack, trial.explained(run):
        stream, batches, step_time = trial.find_sizes(run, stack)
        if run.position.step == 0 and run.compile == "auto":
            run.clock.pace = Pace(((1.0, step_time),))
            if resume.length(run, request) * step_time > trial.compiling_pays(run):
                step_time, batches = trial.faster(run, batches, step_time)
        run.clock.pace, batches = trial.pace(run, batches, step_time)
        if run.position.step == 0 or extending or dist.broadcast(run.folder.config().get("extended")):
            run.position.total = resume.length(run, request)
        if extending:
            resume.extend(run, request)
        run.notes += [*resume.shorter_warmup(run), *expectation.few_steps(run)]
        if dist.is_distributed():
            share = run.position.batch // dist.world_size()
            run.notes.append(f"{dist.world_size()} processes, {share} images of a step each")
        run.listen(_plan(run))
        return Trainer(run, stream, request.checkpoint_every).train(batches)


def plan(run: Run, request: Request) -> Plan:
    """Report and return what `train` would do; what trying its steps records is removed again."""
    saved, damaged = checkpoint.newest(run.folder.checkpoints, together=True)
    run.notes += damaged
    total = None
    if saved is not None:
        run.position.step, run.clock.before = saved.step, saved.elapsed
        total = None if request.extend else saved.total
    out = run.folder
    with tempfile.TemporaryDirectory(prefix="omma-plan-") as place, contextlib.ExitStack() as stack:
        run.folder = RunFolder(Path(place))
        with trial.explained(run):
            _, batches, step_time = trial.find_sizes(run, stack)
            run.clock.pace, _ = trial.pace(run, batches, step_time)
        run.position.total = total or resume.length(run, request)
        run.notes += [*resume.shorter_warmup(run), *expectation.few_steps(run)]
        planned = dataclasses.replace(_plan(run), out=out.path)
    run.listen(planned)
    return planned


def _plan(run: Run) -> Plan:
    step, total = run.position.step, run.position.total
    seconds = run.clock.pace.seconds(step, total, total)
    return Plan(
        images=run.described,
        used=len(run.images),
        skipped=len(run.skipped),
        choice=run.choice,
        parameters=sum(p.numel() for p in run.method.export_encoder().parameters()),
        views=(*augment.describe(run.crops, run.images.channels), *trial.smaller_views(run)),
        device=str(run.device),
        precision=str(run.dtype).removeprefix("torch."),
        images_per_second=run.position.batch * (total - step) / max(seconds, 1e-9),
        steps=run.position.total,
        seconds=seconds,
        peak_memory=devices.peak_memory(run.device),
        out=run.folder.path,
        resumed_at=run.position.step,
        notes=tuple(run.notes),
    )


class Trainer:
    """The training loop with what surrounds it: readings, metrics, checkpoints, the end."""

    def __init__(self, run: Run, stream: loader.Stream, checkpoint_every: float) -> None:
        self.run, self.stream, self.checkpoint_every = run, stream, checkpoint_every
        self.log = MetricsLog(run.folder, run.primary, run.tracked())
        self.readings = Readings(run, self.log)
        self.stop = Stop()
        self.rejected = 0  # steps in a row
        self.started = self.saved = self.pace = time.monotonic()
        self.first = run.position.step
        self.waited = stream.waited  # seconds waited for data before the first step
        self.advised = False
        found = found_before(run.folder.path / "skipped.csv", run.skipped) if run.primary else []
        self.skipped = dict([*run.skipped, *found])
        self.config = run.folder.config()
        self.frozen = fine_tune_groups.share_frozen(run.optimizer.param_groups)

    def train(self, batches: Iterator[Batch]) -> Result:
        """Train to the end, or until a signal; save what there is."""
        with self.log:
            stopped = self._train(batches)
            self.log.ended = not stopped
        return Result(
            out=self.run.folder.path,
            steps=self.run.position.step,
            seconds=self.run.clock.elapsed,
            verdict=self.readings.verdict,
            # the signal may have reached another process
            stopped_by=(self.stop.signal or signal.SIGTERM) if stopped else None,
        )

    def _train(self, batches: Iterator[Batch]) -> bool:
        """Whether a signal stopped it."""
        run, stopped = self.run, False
        if not run.watcher.begun():
            self.readings.read()
        with stop_on_signals() as self.stop, contextlib.closing(run.watch):
            steps = loop.train(
                run.method, run.optimizer, batches, run.choice.recipe, run.position,
                dtype=run.dtype, accumulate=run.accumulate, seed=run.seed,
                local_values=self._votes, watch=run.watch,
            )  # fmt: skip
            for step in steps:
                if stopped := self._after(step):
                    break
        _report_profile(run)
        if isinstance(run.watch, Profiler) and not run.watch.reported:
            run.listen(Note("no profile: it takes at least two steps"))
        if not stopped:
            self._finish()
        return stopped

    def _votes(self) -> tuple[float, ...]:
        """(should we stop, seconds elapsed, is a checkpoint overdue, is a reading cheap).

        Summed over processes: any of them may ask to stop, the rest is up to the primary one and its clock.
        """
        overdue = time.monotonic() - self.saved > self.checkpoint_every
        times = (self.run.clock.elapsed, float(overdue), float(self.readings.cheap()))
        return float(bool(self.stop)), *(times if self.run.primary else (0.0, 0.0, 0.0))

    def _after(self, step: Step) -> bool:
        """What follows a step: log, read health, save; True if the run was asked to stop."""
        run, position = self.run, self.run.position
        now = time.monotonic()
        self._check_finite(step)
        # several processes have exchanged this within the step; one asks itself now
        stopping, elapsed, overdue, cheap = step.summed if dist.is_distributed() else self._votes()
        run.clock.correct(position, steady=position.clock().progress > self.frozen, elapsed=elapsed)
        self._report_progress(step, now)
        reading = run.watcher.due(position, bool(cheap))
        if reading:
            self.readings.verdict = self.readings.read()
            if position.step < position.total and (why := run.watcher.over()):
                run.listen(Note(why))
                position.total = position.step
        self._list_skipped(reading or bool(stopping))
        if stopping or overdue:
            self._save()
            self.saved = time.monotonic()
        if stopping:
            run.listen(Note(f"stopped after step {position.step}; the same command resumes"))
            return True
        _report_profile(run)
        self.pace = time.monotonic()
        return False

    def _report_progress(self, step: Step, now: float) -> None:
        run, position = self.run, self.run.position
        rate = position.batch / max(now - self.pace, 1e-9)
        done = position.step - self.first
        waiting = (self.stream.waited - self.waited) / max(now - self.started, 1e-9)
        run.listen(
            Progress(
                step=position.step,
                total=position.total,
                loss=step.loss,
                images_per_second=rate,
                seconds_left=run.clock.left(self._ahead(now)),
                waiting=waiting,
            )
        )
        if not self.advised and (advice := input_bound.remedy(waiting, done, _feeding(run, self.stream))):
            self.advised = True
            run.listen(Note(advice))
        if ends_part(position, LOGGED):
            line = {"event": "step", "step": position.step, "loss": step.loss, "lr": step.lr}
            line |= {"gradient_norm": step.gradient_norm, "images_per_second": rate, **step.metrics}
            self.log.write(line | {"elapsed": run.clock.elapsed})

    def _ahead(self, now: float) -> float:
        """Seconds that the steps to go take, if they keep to the run's pace as those so far."""
        step, total, pace = self.run.position.step, self.run.position.total, self.run.clock.pace
        return pace.seconds(step, total, total) * (now - self.started) / pace.seconds(self.first, step, total)

    def _check_finite(self, step: Step) -> None:
        """Keep the batch that broke the numbers; end the run if it happens again and again."""
        if step.rejected is None:
            self.rejected = 0
            self.readings.recent.append(step.metrics)
            return
        self.rejected += 1
        _keep_rejected(self.run, step, step.rejected)
        if self.rejected < REJECTED:
            return
        saved = checkpoint.paths(self.run.folder.checkpoints)
        where = f"the last good checkpoint is {saved[-1]}" if saved else "no checkpoint was written yet"
        raise Diverged(
            f"the loss was not finite in {self.rejected} steps in a row, at step {step.clock.step} (learning "
            f"rate {step.lr:.2g}); {where}: lower --lr, or try --precision fp32"
        )

    def _list_skipped(self, exchange: bool) -> None:
        """Add images that could not be read to skipped.csv; exchange: those of all processes, now."""
        if dist.is_distributed() and not exchange:
            return
        fresh = [each for theirs in dist.gather_objects(self.stream.new_bad()) for each in theirs]
        if not fresh:
            return
        self.skipped |= {self.run.images.path(i): reason for i, reason in fresh}
        if self.run.primary:
            write_skipped(self.run.folder.path / "skipped.csv", self.skipped.items())

    def _save(self) -> None:
        run = self.run
        if not run.primary and not fsdp.sharded(run.method):
            return
        if run.primary and run.folder.restore_config(self.config):
            run.listen(Note(f"{run.folder.path} vanished during the run: it is written again"))
        checkpoint.save(
            run.folder.checkpoints, run.method, run.optimizer,
            step=run.position.step, total=run.position.total, elapsed=run.clock.elapsed,
            notes=run.watcher.state(),
        )  # fmt: skip

    def _finish(self) -> None:
        """The last reading and checkpoint, and the encoder exported."""
        run = self.run
        if self.readings.verdict is None:  # all steps were made before the restart
            self.readings.verdict = dist.broadcast(resume.last_verdict(run, run.position.step))
        self.readings.verdict = self.readings.verdict or self.readings.read()
        self._save()
        extras = run.watcher.finish(run.method)
        encoder = run.method.export_encoder()
        if fsdp.sharded(encoder):
            encoder = fsdp.gather_encoder(encoder)
        if run.primary:
            assert encoder is not None
            run.folder.report.unlink(missing_ok=True)  # that of the run before it was extended
            provenance = {
                **run.folder.config(),
                "part": run.part,
                "steps": run.position.step,
                "seconds": run.clock.elapsed,
            }
            peft_format.save(run.folder.adapter, encoder, (provenance.get("init") or {}).get("source"))
            plain = encoder if encoder.adapter is None else adapters.merged(encoder)
            weights.save(run.folder.path, plain, run.preprocess, provenance, extras)


def _feeding(run: Run, stream: loader.Stream) -> input_bound.Feeding:
    return input_bound.Feeding(
        in_memory=stream.in_memory,
        decodes=run.images.encoded,
        workers=stream.workers,
        cores=max(1, devices.cores() // launcher.ranks().local_world_size),
        busy=torch.get_num_threads() if run.device.type == "cpu" else 1,
        side=run.shorter_side,
        enough=augment.at_least(run.crops),
    )


def _report_profile(run: Run) -> None:
    """Once it is known: to the listener and the run folder."""
    profile = run.watch.pop_profile(run.position.batch)
    if profile is not None:
        with files.atomic_write(run.folder.path / "profile.json") as file:
            file.write_text(json.dumps(profile.record(), indent=1) + "\n", encoding="utf-8")
        run.listen(profile)


def _keep_rejected(run: Run, step: Step, batches: list[Batch]) -> None:
    """Write the views of a step that broke the numbers; each process its own, for one of them broke it."""
    process = f"-process-{dist.rank()}" if dist.rank() else ""
    path = run.folder.path / f"rejected-step-{step.clock.step}{process}.safetensors"
    tensors = {
        f"part{i}.views{j}": view.contiguous().cpu()
        for i, batch in enumerate(batches)
        for j, view in enumerate(batch.views)
    }
    with files.atomic_write(path) as partial:
        partial.write_bytes(save(tensors))
    run.listen(
        Note(f"step {step.clock.step}: loss or gradient is not finite; skipped, batch kept in {path.name}")
    )
