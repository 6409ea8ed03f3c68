"""`omma pretrain`: images without labels in, an encoder out."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from omma.core import dist, launcher, outputs
from omma.core.explain import translated
from omma.data.batches.preprocess import as_dict
from omma.data.sources.skipped import found_before, write_skipped
from omma.pretraining import same_images, trainer
from omma.pretraining.assemble import assemble, configuration
from omma.pretraining.events import Note, Result, Stage
from omma.pretraining.folder import RunFolder
from omma.pretraining.request import Request, takes
from omma.pretraining.run import Run
from omma.pretraining.setup import Setup, decide
from omma.reporting import run_report
from omma.train.budget import Timekeeper

log = logging.getLogger(__name__)

RELEASE = 60.0  # seconds until the lock of a run that torchrun restarts must be free


@takes(Request)
@dist.process_group()
@translated()
def pretrain(request: Request) -> Result:
    """`omma pretrain` as a function; its arguments are the fields of `Request`.

    Raises ValueError, in one line, for anything the user can mend.
    """
    timekeeper = Timekeeper(request.seconds)  # decoding and building count too
    with dist.propagate_errors():
        if dist.rank() == 0 and not _is_finished(request.out):
            outputs.check_folder(request.out or "runs")
    setup = decide(request)
    request.listen(Stage("building the network"))
    run = assemble(setup, timekeeper)
    with claimed(setup, run):
        request.listen(Stage("measuring the speed of a step"))
        result = trainer.train(run, request)
        if run.primary and run.folder.finished and not run.folder.report.exists():
            _report(run, request)
    return result


def _is_finished(out: str | Path | None) -> bool:
    return out is not None and RunFolder(Path(out)).finished


def _report(run: Run, request: Request) -> None:
    """Write the run's report; the model is saved, so whatever fails here is no more than a note."""
    try:
        run_report.write_report(
            run.folder,
            run.monitor.sample,
            request.seed,
            lambda stage, done, total: request.listen(Stage(stage, done, total)),
        )
    except Exception as error:
        log.debug("the report failed", exc_info=True)
        request.listen(Note(run_report.not_written(error, run.folder.path)))


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
                file, skipped = run.folder.path / "skipped.csv", list(setup.data.source.skipped)
                earlier = [] if setup.request.accept_changed_data else found_before(file, skipped)
                write_skipped(file, [*skipped, *earlier])
        yield
