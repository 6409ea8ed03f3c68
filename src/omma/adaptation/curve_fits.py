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
from omma.core.protocols import NO_EXTRAS, Images
from omma.data.sources.collection import IndexedImages
from omma.evaluation.curve import SCRATCH
from omma.features.extract import extract
from omma.pretraining import session
from omma.pretraining.request import Request, Supervision
from omma.weights import Model
from omma.weights.classifier import Classifier


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
    """The recipe of an adapter for so many labelled images (docs/finetune.md says how it was found)."""
    steps = 100 if images < 500 else 300
    base = {"smoothing": 0.1, "encoder_lr_scale": 1.0, "head_warmup": 0.0, "layer_decay": 1.0}
    if adapter == "full":
        return Recipe(steps=steps, lr=1e-3, options=base | {"encoder_lr_scale": 0.3, "layer_decay": 0.75})
    if adapter == "scratch":
        return Recipe(steps=steps, lr=1e-3, options=base)
    return Recipe(steps=steps, lr=3e-3, options=base, adapt=adapter)


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """Fits adapters by the engine of `omma finetune`, each as a run in a temporary folder."""

    model: Model
    images: IndexedImages
    test: Images
    device: torch.device
    precision: torch.dtype

    def __call__(
        self, adapter: str, rows: Int[np.ndarray, "n"], seed: int, by: Recipe, head: Classifier
    ) -> Int[np.ndarray, "m"]:
        """Predicted labels of the test images.

        rows: the images to learn from. head: the linear head of the frozen features, with which all but
        training from scratch begin [Kumar 2022, arXiv 2202.10054].
        """
        start, extras = self.model.untrained(seed), NO_EXTRAS
        if adapter != SCRATCH:
            start, extras = self.model, head.extras()
        with tempfile.TemporaryDirectory(prefix="omma-curve-") as folder:
            init, out = Path(folder) / "init", Path(folder) / "run"
            weights.save(init, start.encoder, self.model.preprocess, start.provenance, extras)
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
        classifier = Classifier.of(fitted)
        assert classifier is not None, "a run of finetune saves one"
        assert classifier.classes == self.images.classes
        features = extract(fitted.encoder, self.test, fitted.preprocess, self.device, self.precision)
        if len(features.indices) < len(self.test):
            raise ValueError(
                f"{features.bad[0][0]}: {features.bad[0][1]}, though it was read before; try again"
            )
        return classifier.logits(torch.from_numpy(features.vectors)).argmax(1).numpy()
