"""`omma finetune`: an encoder and labelled images in, a classifier out."""

from collections.abc import Callable

from omma.adaptation import by_names, choose, head_run
from omma.adaptation.request import FineTuning
from omma.core import dist
from omma.core.explain import translated
from omma.pretraining import repeat, session
from omma.pretraining.events import Plan, Result
from omma.pretraining.folder import RunFolder
from omma.pretraining.request import takes
from omma.reporting import run_report

# what `--adapt` names beside full and the adapters, which the engine trains
WAYS: dict[str, Callable[[FineTuning, head_run.Report], Result]] = {
    "head": head_run.run,
    "auto": choose.run,
    **dict.fromkeys(by_names.KINDS, by_names.run),
}
CALL = ("images", "seed", "precision", "out", "listen", "extend", "profile", "accept_changed_data")


@takes(FineTuning)
@dist.process_group()
@translated()
def finetune(tuning: FineTuning) -> Result:
    """`omma finetune` as a function; its arguments are the fields of `FineTuning`.

    Raises ValueError, in one line, for anything the user can mend.
    """
    if tuning.adapt in WAYS:
        result = WAYS[tuning.adapt](tuning, run_report.report_of)
        folder = RunFolder(result.out)
        if dist.rank() == 0 and "options" not in folder.config():  # for --config, which repeats it
            apart = {"held": True} if repeat.held(tuning.images) else {}
            folder.revise({**apart, "options": repeat.asked(tuning, CALL)})
        return result
    return session.run(tuning.request(), run_report.report)


@takes(FineTuning)
@dist.process_group()
@translated()
def plan(tuning: FineTuning) -> Plan:
    """What `finetune` would do with these arguments, with nothing written; raises ValueError as it does."""
    if tuning.adapt in WAYS:
        raise ValueError(f"--adapt {tuning.adapt} is fitted, not trained in steps: there is no plan of steps")
    return session.plan(tuning.request())
