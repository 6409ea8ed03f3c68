"""Commands that make classifiers: `omma finetune`."""

from typing import Any

from omma.adaptation.request import FineTuning
from omma.cli import early
from omma.cli.shared import Dotted, Labelled_, Model_
from omma.cli.train import as_command, trained


@as_command(FineTuning, model=Model_, images=Labelled_)
def finetune(dotted: Dotted = None, **options: Any) -> int:
    """Its signature and help are the fields of `FineTuning`; dotted: `--method.KEY`, `--adapt.KEY`, ..."""
    own = dotted or {}
    options |= {
        "options": own.get("method"),
        "model_options": own.get("model"),
        "adapt_options": own.get("adapt"),
    }
    early.model(str(options["model"]))
    early.pretraining(FineTuning(**options).request())
    return trained("finetune", **options)
