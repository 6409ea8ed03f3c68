"""`omma pretrain`: images without labels in, an encoder out."""

import contextlib
from collections.abc import Iterator

from omma.core import dist, launcher
from omma.data.sources import identity
from omma.data.sources.collection import write_skipped
from omma.pretraining import trainer
from omma.pretraining.assemble import assemble, configuration
from omma.pretraining.events import Result
from omma.pretraining.request import Request, takes
from omma.pretraining.run import Run
from omma.pretraining.setup import Setup, decide
from omma.reporting import run_report
from omma.train.budget import Timekeeper

RELEASE = 60.0  # seconds until the lock of a run that torchrun restarts must be free


@takes(Request)
@dist.process_group()
def pretrain(request: Request) -> Result:
    """`omma pretrain` as a function; its arguments are the fields of `Request`.

    Raises ValueError, in one line, for anything the user can mend.
    """
    timekeeper = Timekeeper(request.seconds)  # decoding and building count too
    setup = decide(request)
    run = assemble(setup, timekeeper)
    with claimed(setup, run):
        finished_before = run.folder.finished
        result = trainer.train(run, request)
        if run.primary and run.folder.finished and not finished_before:
            identity.write(run.folder.path, setup.images, request.seed)
            run_report.write_report(run.folder, run.monitor.sample, request.seed)
    return result


@contextlib.contextmanager
def claimed(setup: Setup, run: Run) -> Iterator[None]:
    """Make the run folder this run's, and keep other processes from training there meanwhile."""
    with contextlib.ExitStack() as stack:
        with dist.propagate_errors():
            if run.primary:
                run.folder.claim(configuration(setup, run))
                write_skipped(run.folder.path / "skipped.csv", setup.data.source.skipped)
                stack.enter_context(run.folder.locked(RELEASE if launcher.ranks().restarts else 0.0))
        yield
