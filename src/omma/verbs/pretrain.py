"""`omma pretrain`: images without labels in, an encoder out."""

from omma import methods
from omma.core import dist
from omma.core.explain import translated
from omma.pretraining import preflight, session
from omma.pretraining.events import Plan, Result
from omma.pretraining.request import Request, takes
from omma.reporting import run_report


@takes(Request)
@dist.process_group()
@translated()
def pretrain(request: Request) -> Result:
    """`omma pretrain` as a function; its arguments are the fields of `Request`.

    Raises ValueError, in one line, for anything the user can mend.
    """
    if request.method == methods.FINE_TUNING:
        raise ValueError("finetune makes a classifier, by a command of its own: omma finetune MODEL LABELLED")
    return session.run(request, run_report.report, preflight.tell)


@takes(Request)
@dist.process_group()
@translated()
def plan(request: Request) -> Plan:
    """What `pretrain` would do with these arguments: its choices, steps and time, with nothing written.

    Raises ValueError as `pretrain` does.
    """
    return session.plan(request)
