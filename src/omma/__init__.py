"""omma: from a folder of images to a vision model its owner can trust.

`pretrain`, `finetune`, `predict`, `evaluate`, `embed` and `report` are the commands of the same names; `load`
opens what they made. `Embedder` is a model as a step of scikit-learn.
`network` marks a function that makes a network of one's own (docs/own_network.md); `Objective` and `wrap` are
for a training loop of one's own (docs/own_loop.md).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from omma.core.version import __version__

if TYPE_CHECKING:
    from omma.backbones import wrap
    from omma.core.own import network
    from omma.pretraining.objective import Objective
    from omma.verbs.clean import clean
    from omma.verbs.curate import curate
    from omma.verbs.embed import embed
    from omma.verbs.evaluate import evaluate
    from omma.verbs.explain import explain
    from omma.verbs.explore import explore
    from omma.verbs.export import export
    from omma.verbs.finetune import finetune
    from omma.verbs.index import index
    from omma.verbs.predict import predict
    from omma.verbs.pretrain import pretrain
    from omma.verbs.report import report
    from omma.verbs.search import search
    from omma.verbs.serve import serve
    from omma.weights import load
    from omma.weights.embedder import Embedder

__all__ = [
    "Embedder", "Objective", "__version__", "clean", "curate", "embed", "evaluate", "explain", "explore",
    "export", "finetune", "index", "load", "network", "predict", "pretrain", "report", "search", "serve",
    "wrap",
]  # fmt: skip

_HOMES = {
    "Embedder": "omma.weights.embedder",
    "Objective": "omma.pretraining.objective",
    "load": "omma.weights",
    "network": "omma.core.own",
    "wrap": "omma.backbones",
}


if not TYPE_CHECKING:  # type checkers would take every name, misspelt ones too, for an Any

    def __getattr__(name: str) -> Any:
        """Names are imported when they are first used, so that `import omma` stays quick."""
        if name not in __all__:
            raise AttributeError(f"module 'omma' has no attribute {name!r}")
        return getattr(import_module(_HOMES.get(name, f"omma.verbs.{name}")), name)


def __dir__() -> list[str]:
    return sorted(__all__)
