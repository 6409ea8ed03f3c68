"""The head that a classifier begins with: linear probing before fine-tuning [Kumar 2022, arXiv 2202.10054].

A linear classifier is fitted on features of the network as it is. Training then starts from what these
features can do, instead of sending an untrained head's gradients through the encoder.
"""

import numpy as np
import torch

from omma.core import dist
from omma.data.sources import label_sets
from omma.evaluation import linear
from omma.evaluation.split import folds, holdouts
from omma.features.extract import extract
from omma.methods.shared.classifies import Classifies
from omma.pretraining import few_labels, requirements
from omma.pretraining.events import Stage
from omma.pretraining.run import Run
from omma.train import ddp

SEVERAL_FOLDS = 1_000  # images below which one hold-out is too noisy to choose a penalty by
ALONE = {"solver": "means"}  # where every class has a single image


def fit(run: Run) -> None:
    """Fit the head of a run that begins, if its method wants that; all processes call."""
    method, choice = run.method, run.choice
    if run.position.step or not requirements.needs_of(choice.method, choice.recipe.config).fits_head:
        return
    assert isinstance(method, Classifies), "guaranteed by Needs.fits_head"
    if method.begun:  # by the run that the weights are from
        return
    with dist.propagate_errors():
        if run.primary:
            settings = _fit(run, method)
            numbers = [f"{name} {value:g}" for name, value in settings.items() if name != "solver"]
            how = ", ".join(numbers).replace("_", " ") or "class means"
            run.notes.append(f"the head begins as a linear classifier of frozen features ({how})")
    ddp.broadcast_state(method)


def _fit(run: Run, method: Classifies) -> linear.Settings:
    stage = "fitting the head on frozen features"
    found = extract(
        method.encoder, run.images, run.preprocess, run.device, run.dtype,
        progress=lambda done, total: run.listen(Stage(stage, done, total)),
    )  # fmt: skip
    labels = few_labels.labels_of(run.images, found.indices)
    targets = linear.one_hot(labels, len(run.images.classes))
    codes = label_sets.strata(labels) if labels.ndim == 2 else labels
    loss: linear.Loss = "sigmoid" if labels.ndim == 2 else "softmax"
    groups = None if run.groups is None else run.groups[found.indices]
    parts = folds(codes, run.seed, groups=groups)
    settings: linear.Settings = dict(ALONE)
    if parts:
        pairs = parts if len(codes) < SEVERAL_FOLDS else holdouts(codes, run.seed, groups=groups)
        settings = linear.choose(found.vectors, targets, loss=loss, pairs=pairs, seed=run.seed)
    weight, bias = linear.fit(found.vectors, targets, settings, loss=loss, seed=run.seed).folded()
    with torch.no_grad():
        method.head.weight.copy_(torch.from_numpy(np.ascontiguousarray(weight)))
        method.head.bias.copy_(torch.from_numpy(bias))
    return settings
