"""Fine-tuning by the engine that pretrains: all of an encoder, or an adapter in it."""

from collections.abc import Callable

from omma.adaptation.request import FineTuning
from omma.pretraining import session
from omma.pretraining.events import Result
from omma.pretraining.run import Run


def run(tuning: FineTuning, report: Callable[[Run], None] | None = None) -> Result:
    """Train the classifier; the run folder is the result. report: as for `session.run`.

    Raises ValueError, in one line, for anything the user can mend.
    """
    return session.run(tuning.request(), report)
