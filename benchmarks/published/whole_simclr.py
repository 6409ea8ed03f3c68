"""Whole steps of SimCLR: omma's setup, and the published head, loss, schedule and LARS around its encoder."""

import dataclasses
import re
from typing import TYPE_CHECKING, Any

import torch
from published.tensorflow_functions import Inputs, Variable
from published.whole import STEPS, Setup, crops, encoder, fill
from torch import Tensor, nn

from omma.core.protocols import Batch, Context, Method, Recipe
from omma.methods import simclr

if TYPE_CHECKING:
    from published.references import References

IMAGE, BATCH = 16, 8
NARROW: dict[str, Any] = {"dim": 16, "depth": 2, "heads": 2, "hidden": 64, "patch": 4}


def make_simclr() -> tuple[Method, Recipe]:
    recipe = simclr.paper(224, "vit-s/16").for_batch(BATCH)
    recipe = dataclasses.replace(recipe, config=dataclasses.replace(recipe.config, out=8))
    method = simclr.Method(
        encoder("vit-s/16", recipe, IMAGE, **NARROW), recipe.config, Context(image_size=IMAGE)
    )
    fill(method.double())
    return method, recipe


def pairs(step: int) -> Batch:
    return crops(step, BATCH, (2, IMAGE))


def theirs_simclr(references: "References", setup: Setup, before: dict[str, Tensor]) -> dict[str, Tensor]:
    """tf2/run.py with its flags' defaults: its head, loss, schedule and optimizer around omma's encoder."""
    official = references.load("google-research/simclr", "run", inside="tf2")
    flags, model_lib = official.FLAGS, official.model_lib
    flags.train_batch_size, flags.proj_out_dim = BATCH, 8
    flags.train_epochs = setup.total * BATCH // setup.images
    assert model_lib.get_train_steps(setup.images) == setup.total
    network = setup.make()[0]
    encoder_ = network.get_submodule("encoder")
    learning_rate = model_lib.WarmUpAndCosineDecay(flags.learning_rate, setup.images)
    optimizer = model_lib.build_optimizer(learning_rate)
    optimizer.iterations = setup.first
    head = model_lib.ProjectionHead()

    def project(images: Tensor) -> Tensor:
        return head(encoder_(images).pooled.as_subclass(Inputs), True)[0]

    project(torch.zeros(2, 3, IMAGE, IMAGE, dtype=torch.float64))  # builds the head
    variables = {}
    for variable in head.trainable():
        layer, kind, last = re.findall(r"nl_(\d)/(?:.*/)?(\w+)/(\w+):0", variable.name)[0]
        number = 3 * int(layer) + (kind != "dense")
        name = f"head.{number}.{'bias' if last == 'beta' else 'weight'}"
        variable.assign(before[name].T)
        variables[name] = variable
    for name, p in encoder_.named_parameters():
        if p.requires_grad:
            is_norm = isinstance(encoder_.get_submodule(name.rpartition(".")[0]), nn.LayerNorm)
            full = f"batch_normalization/{name}" if is_norm else name
            variables[f"encoder.{name}"] = Variable(p, full)
    for step in range(setup.first, setup.first + STEPS):
        views = setup.batch(step).views[0]
        outputs = project(torch.cat([views[:, 0], views[:, 1]])).as_subclass(torch.Tensor)
        loss = official.obj_lib.add_contrastive_loss(
            outputs, hidden_norm=flags.hidden_norm, temperature=flags.temperature, strategy=None
        )[0]
        gradients = torch.autograd.grad(loss, [v.value for v in variables.values()])
        optimizer.apply_gradients(zip(gradients, variables.values(), strict=True))
    return {
        name: v.value.detach().T if v.value.ndim == 2 and name.startswith("head") else v.value.detach()
        for name, v in variables.items()
    }
