"""A network of a curve: trained on a few labelled images, and its answers on the test images."""

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from omma import weights
from omma.core.protocols import Images
from omma.data.sources.indexed import IndexedImages
from omma.evaluation.curve import SCRATCH
from omma.pretraining import session
from omma.pretraining.request import Request, Supervision
from omma.weights import Model, answers

FEW = 500  # labelled images


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How an adapter is trained for a curve: fixed steps, so that the same curve twice is the same."""

    steps: int
    lr: float
    batch: int = 64
    options: Mapping[str, Any] = field(default_factory=dict)  # of methods/finetune.py
    adapt: str | None = None
    adapt_options: Mapping[str, Any] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        return asdict(replace(self, options=dict(self.options), adapt_options=dict(self.adapt_options)))


def recipe(adapter: str, images: int) -> Recipe:
    """The recipe of an adapter for so many labelled images (docs/finetune.md says how it was found).

    Few images want few and small steps: all but training from scratch begin with a fitted head
    (pretraining/first_head.py), which more steps only unlearn.
    """
    few = images < FEW
    options = {
        "head_warmup": 0.0,
        "encoder_lr_scale": 1.0,
        "layer_decay": 1.0,
        "fit_head": adapter != SCRATCH,
        "fixed_statistics": adapter != SCRATCH,  # an untrained network's are 0 and 1
    }
    if adapter == SCRATCH:
        return Recipe(steps=100 if few else 300, lr=2e-3, options=options)
    if adapter == "full":
        return Recipe(steps=50 if few else 300, lr=1e-4 if few else 1e-3, options=options)
    return Recipe(steps=50 if few else 300, lr=3e-4 if few else 3e-3, options=options, adapt=adapter)


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """Fits adapters by the engine of `omma finetune`, each as a run in a temporary folder."""

    model: Model
    images: IndexedImages
    test: Images
    device: torch.device
    precision: torch.dtype

    def __call__(
        self, adapter: str, rows: Int[np.ndarray, "n"], seed: int, by: Recipe
    ) -> Int[np.ndarray, "m"]:
        """Predicted labels of the test images; rows: the images to learn from."""
        start = self.model.untrained(seed) if adapter == SCRATCH else self.model
        with tempfile.TemporaryDirectory(prefix="omma-curve-") as folder:
            init, out = Path(folder) / "init", Path(folder) / "run"
            weights.save(init, start.encoder, self.model.preprocess, start.provenance)
            request = Request(
                self.images.subset(rows),
                method="finetune",
                init=init,
                adapt=by.adapt,
                adapt_options=by.adapt_options,
                options=by.options,
                out=out,
                steps=by.steps,
                batch_size=by.batch,
                accumulate=1,
                lr=by.lr,
                compile="off",
                device=self.device.type,
                precision="bf16" if self.precision == torch.bfloat16 else "fp32",
                seed=seed,
                workers=0,
                checkpoint_every=float("inf"),
                supervision=Supervision(holdout=0),
            )
            session.run(request)
            fitted = weights.load(out)
        assert fitted.classifier is not None, "a run of finetune saves one"
        assert fitted.classifier.classes == self.images.classes
        logits = answers.logits(fitted, self.test, self.device, self.precision)
        if len(logits.indices) < len(self.test):
            raise ValueError(f"{logits.bad[0][0]}: {logits.bad[0][1]}, though it was read before; try again")
        return logits.vectors.argmax(1)
