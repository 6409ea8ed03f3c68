"""`omma finetune`: an encoder and labelled images in, a classifier out."""

from collections.abc import Callable

from omma.adaptation import by_names, choose, head_run
from omma.adaptation.request import FineTuning
from omma.core import dist
from omma.core.explain import translated
from omma.pretraining import session
from omma.pretraining.events import Result
from omma.pretraining.request import takes
from omma.reporting import run_report

# what `--adapt` names beside full and the adapters, which the engine trains
WAYS: dict[str, Callable[[FineTuning, head_run.Report], Result]] = {
    "head": head_run.run,
    "auto": choose.run,
    **dict.fromkeys(by_names.KINDS, by_names.run),
}


@takes(FineTuning)
@dist.process_group()
@translated()
def finetune(tuning: FineTuning) -> Result:
    """`omma finetune` as a function; its arguments are the fields of `FineTuning`.

    Raises ValueError, in one line, for anything the user can mend.
    """
    if tuning.adapt in WAYS:
        return WAYS[tuning.adapt](tuning, run_report.report_of)
    return session.run(tuning.request(), run_report.report)
