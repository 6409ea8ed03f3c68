"""One call of a command that trains: decided, assembled, claimed, trained."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

from omma.core import dist, launcher, outputs
from omma.core.errors import need
from omma.data.batches.preprocess import as_dict
from omma.data.sources.skipped import found_before, write_skipped
from omma.pretraining import same_images, trainer
from omma.pretraining.assemble import assemble, configuration
from omma.pretraining.events import Plan, Result, Stage
from omma.pretraining.folder import RunFolder
from omma.pretraining.request import Request
from omma.pretraining.run import Run
from omma.pretraining.setup import Setup, decide
from omma.train.budget import Timekeeper

RELEASE = 60.0  # seconds until the lock of a run that torchrun restarts must be free


def run(
    request: Request,
    report: Callable[[Run], None] | None = None,
    preflight: Callable[[Setup, Run], None] | None = None,
) -> Result:
    """Train what the request asks for, or go on where it was stopped.

    report: called once training is finished, if the run folder has no report yet. preflight: called before
    the first step of a run that begins, by the first process. All processes call. Raises
    ValueError, in one line, for anything the user can mend.
    """
    timekeeper = Timekeeper(request.seconds)  # decoding and building count too
    if request.track != "none":
        need(request.track, request.track)
    with dist.propagate_errors():
        if dist.rank() == 0 and not _is_finished(request.out):
            outputs.check_folder(request.out or "runs")
    setup = decide(request)
    request.listen(Stage("building the network"))
    run = assemble(setup, timekeeper)
    begins = dist.broadcast(not run.folder.config())  # the first process writes it soon
    with claimed(setup, run):
        if preflight is not None and begins:
            with dist.propagate_errors():
                if run.primary:
                    preflight(setup, run)
        request.listen(Stage("measuring the speed of a step"))
        result = trainer.train(run, request)
        if report is not None and run.primary and run.folder.finished and not run.folder.report.exists():
            report(run)
    return result


def plan(request: Request) -> Plan:
    """What a run would do, with the speed of its steps measured; nothing is trained, and no file is left.

    A run that has begun is planned from its newest checkpoint. All processes call. Raises ValueError as `run`
    does.
    """
    timekeeper = Timekeeper(request.seconds)
    setup = decide(request)
    if request.cache:  # which would be written
        setup = dataclasses.replace(setup, request=dataclasses.replace(request, cache=False))
    request.listen(Stage("building the network"))
    run = assemble(setup, timekeeper)
    with dist.propagate_errors():
        if run.primary and not request.cache:
            run.folder.check(configuration(setup, run), request.extend)
    request.listen(Stage("measuring the speed of a step"))
    return trainer.plan(run, request)


def _is_finished(out: str | Path | None) -> bool:
    return out is not None and RunFolder(Path(out)).finished


@contextlib.contextmanager
def claimed(setup: Setup, run: Run) -> Iterator[None]:
    """Make the run folder this run's, and keep other processes from training there meanwhile."""
    with contextlib.ExitStack() as stack:
        with dist.propagate_errors():
            if run.primary:
                config = configuration(setup, run)
                run.folder.check(config, setup.request.extend)  # before its lock is written
                stack.enter_context(run.folder.locked(RELEASE if launcher.ranks().restarts else 0.0))
                run.folder.claim(config, setup.request.extend)
                preprocess = as_dict(run.preprocess)
                same_images.remember(run.folder, setup.data, setup.known, setup.facts, preprocess)
                if run.related.digest is not None:
                    run.folder.revise({"columns": run.related.digest})
                file, skipped = run.folder.path / "skipped.csv", list(setup.data.source.skipped)
                earlier = [] if setup.request.accept_changed_data else found_before(file, skipped)
                write_skipped(file, [*skipped, *earlier])
        yield
