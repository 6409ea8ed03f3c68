"""`omma finetune`: an encoder and labelled images in, a classifier out."""

from collections.abc import Callable

from omma.adaptation import by_names
from omma.adaptation import finetune as full
from omma.adaptation.request import FineTuning
from omma.core import dist
from omma.core.explain import translated
from omma.pretraining.events import Result
from omma.pretraining.request import takes
from omma.pretraining.run import Run
from omma.reporting import run_report

# what `--adapt` names beside adapters that the engine trains: each takes (FineTuning, report)
WAYS: dict[str, Callable[[FineTuning, Callable[[Run], None]], Result]] = {
    **dict.fromkeys(by_names.KINDS, by_names.run)
}


@takes(FineTuning)
@dist.process_group()
@translated()
def finetune(tuning: FineTuning) -> Result:
    """`omma finetune` as a function; its arguments are the fields of `FineTuning`.

    Raises ValueError, in one line, for anything the user can mend.
    """
    return WAYS.get(tuning.adapt, full.run)(tuning, run_report.report)
