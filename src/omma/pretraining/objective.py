"""A pretraining method as one module for a training loop of one's own: images in, loss out."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn

from omma import backbones, methods
from omma.backbones.layers.wrapped import Wrapped
from omma.core import dist
from omma.core.protocols import (
    Backbone,
    Batch,
    Clock,
    Context,
    Frames,
    Key,
    Needs,
    Preprocess,
    Recipe,
    Trained,
)
from omma.data.batches import augment
from omma.data.batches.preprocess import IMAGENET_MEAN, IMAGENET_STD
from omma.pretraining import requirements
from omma.train import clipping
from omma.train import optimizer as optimizers


class Objective(nn.Module):
    """The loss of a pretraining method as a function of a batch of images (docs/own_loop.md).

    The state_dict includes the step, so that a run resumes from it and the optimizer's. `metrics` are those
    of the latest batch; `recipe` has the learning rate, weight decay, ... that suit the method, and
    `make_optimizer` and `before_step` train by it.

    Args:
        name: The method; `omma methods` lists them.
        encoder: A backbone, or any module that `omma.wrap` takes. It is trained in place.
        image_size: Pixels along a side that the encoder is meant for.
        steps: Optimizer steps of the whole run; the method's schedules end there.
        epochs: Passes over the images that these steps make, for options that are counted in epochs.
        recipe: small (1,000 to 100,000 images) or paper: the defaults of the options.
        options: The method's own, as --method.KEY: {"prototypes": 4096}.
        classes: Names of the labels, or how many there are, for methods that learn from labels.
        model: What `omma.load` returns, for methods that learn from a trained model.
        mean: For each channel, of values in [0, 1]; the encoder sees (x - mean) / std.
        std: Likewise.
        normalised: Are the images that `forward` receives normalised by `mean` and `std` already?
        seed: Of views and masks.

    Raises ValueError for what the method cannot work with.
    """

    def __init__(
        self, name: str, encoder: nn.Module, *, image_size: int, steps: int, epochs: float = 1.0,
        recipe: str = "small", options: Mapping[str, Any] | None = None, classes: int | Sequence[str] = (),
        model: Trained | None = None, mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD, normalised: bool = False, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        if steps < 1:
            raise ValueError(f"steps={steps}: give the optimizer steps of the whole run")
        c = len(mean)
        if not isinstance(encoder, Backbone):
            encoder = backbones.wrap(encoder, channels=c, image_size=image_size)
        if not encoder.channels == c == len(std):
            raise ValueError(f"mean and std: give {encoder.channels} numbers each, one for each channel")
        self.name, self.steps, self.epochs, self.seed, self.normalised = name, steps, epochs, seed, normalised
        self.classes = tuple(map(str, range(classes))) if isinstance(classes, int) else tuple(classes)
        self.preprocess = Preprocess(
            size=image_size, channels=c, low=(0.0,) * c, high=(255.0,) * c, mean=tuple(mean), std=tuple(std)
        )
        file, self.recipe = methods.get(name), _recipe(name, recipe, encoder, image_size, options or {})
        self.needs, self.plan = file.needs(self.recipe.config), file.views(self.recipe.config, image_size)
        requirements.suits(name, self.needs, encoder, image_size)
        _refuse(name, self.needs, file.frames(self.recipe.config), self.classes, model)
        for crop in self.plan:
            try:
                encoder.grid(crop.size, crop.size)
            except ValueError as error:
                sizes = "crop_size, local_size, local_crops"
                raise ValueError(f"{error}; the options {sizes} of {name} set the sizes of views") from error
        self.method = file.Method(
            encoder,
            self.recipe.config,
            Context(image_size=image_size, classes=self.classes, preprocess=self.preprocess, model=model),
        )
        self._late = [g for g in self.method.groups() if g.frozen_until or g.frozen_share]
        self._scheduled = False  # does `before_step` set the groups' rates?
        self.metrics: Mapping[str, Tensor] = {}  # of the latest batch
        self._begin(step=0)

    def _begin(self, step: int) -> None:
        self.step = step
        self._carries: list[Any] = []  # of this step's micro-batches so far ...
        self._images = 0  # ... how many images they have ...
        self._version = -1  # ... and how often the encoder was changed before them

    @property
    def clock(self) -> Clock:
        """Where the run is."""
        if (steps := self.recipe.epoch_steps) is not None:
            passes = self.epochs * steps / self.steps
            return Clock(self.step, self.steps, self.step / steps, self.steps / steps, passes)
        passes = self.recipe.epoch_passes
        epochs = self.epochs / passes
        return Clock(self.step, self.steps, epochs * self.step / self.steps, epochs, passes)

    def make_optimizer(self, batch: int | None = None) -> torch.optim.Optimizer:
        """The recipe's optimizer, for `before_step`.

        batch: images in a step, which the learning rate follows as the recipe says; by default the recipe's.
        """
        if batch is not None:
            self.recipe = self.recipe.for_batch(batch)
        self._scheduled = True
        return optimizers.make_optimizer(self.method, self.recipe)

    def before_step(self, optimizer: torch.optim.Optimizer) -> float:
        """Between `backward` and the step: set learning rates and weight decay, and clip, by the recipe.

        optimizer: from `make_optimizer`. Returns the norm of the gradients before they are clipped.
        """
        optimizers.schedule(optimizer, self.recipe, self.clock)
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
        norm = clipping.norm([g for g in gradients if g is not None])
        if self.recipe.clip is not None:
            clipping.clip(optimizer, self.recipe.clip, self.recipe.clip_by, norm)
        return float(norm)

    if TYPE_CHECKING:  # to type checkers, nn.Module's own returns Any

        def __call__(
            self, images: Tensor | Sequence[Tensor], labels: Tensor | None = None
        ) -> Float[Tensor, ""]: ...

    def forward(
        self, images: Num[Tensor, "b c h w"] | Sequence[Num[Tensor, "c h w"]], labels: Tensor | None = None
    ) -> Float[Tensor, ""]:
        """The loss. Several calls before `after_step` are the micro-batches of one step.

        images: uint8, or floats in [0, 1] (or normalised), on the encoder's device; in a list their sizes may
        differ. labels: int [b], -1 for images without one.
        """
        clock, batch = self.clock, self.batch(images, labels)
        learning = self.training and torch.is_grad_enabled()
        if learning:
            version = sum(p._version for p in self.method.encoder.parameters())
            if self._carries and version != self._version:
                raise ValueError(f"{self.name} updates its state in after_step(): call it after each step")
            self._version = version
            for group in self._late:
                until = clock.epoch < group.frozen_until and not (group.ages and self._scheduled)
                frozen = until or clock.progress < group.frozen_share
                for p in group.params:
                    p.requires_grad_(not frozen)
        output = self.method(batch, clock)
        if learning:
            self._carries.append(output.carry)
            self._images += len(images)
        self.metrics = output.metrics
        return output.loss

    @torch.no_grad()
    def after_step(self) -> None:
        """Update what the optimizer does not (teacher, centre, ...), after each of its steps."""
        if not self._carries:
            raise ValueError("after_step() follows the loss of a batch, computed in training mode")
        self.method.after_step(self.clock, self._carries)
        self._begin(self.step + 1)

    def export_encoder(self) -> nn.Module:
        """What to use afterwards: your module, or the teacher's copy of it if the paper evaluates that."""
        encoder = self.method.export_encoder()
        return encoder.module if isinstance(encoder, Wrapped) else encoder

    @torch.no_grad()
    def batch(self, images: Tensor | Sequence[Tensor], labels: Tensor | None = None) -> Batch:
        """The method's views of the images, drawn by (seed, step, number within the step)."""
        if len(images) < self.needs.batch:
            raise ValueError(
                f"{self.name} needs a batch of at least {self.needs.batch} ({self.needs.why_batch})"
            )
        device = images[0].device
        first = (dist.rank() << 32) + self._images
        key = Key(self.seed, np.full(len(images), self.step), np.arange(first, first + len(images)))
        with torch.autocast(device.type, enabled=False):  # pixels need their full precision
            if isinstance(images, Tensor):
                crops = augment.cut_batch(self._raw(images), self.plan, key)
            else:
                crops = augment.cut_each([self._raw(image) for image in images], self.plan, key)
            views = augment.augment(crops, self.plan, key, self.preprocess)
        if self.needs.labels:
            _check_labels(self.name, labels, len(images), len(self.classes))
        return Batch(views, key, None if labels is None else labels.to(device))

    def _raw(self, images: Num[Tensor, "*b c h w"]) -> Num[Tensor, "*b c h w"]:
        """The images with values in 0 to 255."""
        p = self.preprocess
        if images.ndim < 3 or images.shape[-3] != p.channels:
            raise ValueError(f"images {list(images.shape)}: expected {p.channels} channels, [b, c, h, w]")
        if images.dtype == torch.uint8:
            return images
        if not images.is_floating_point():
            raise ValueError(f"images of {images.dtype}: give uint8, or floats in [0, 1]")
        images = images.float()
        if self.normalised:
            mean, std = (images.new_tensor(v)[:, None, None] for v in (p.mean, p.std))
            images = images * std + mean
        if self.step == self._images == 0 and not bool(((images > -0.02) & (images < 1.02)).all()):
            raise ValueError(
                "images have values outside [0, 1]: give uint8 for 0 to 255, or normalised=True with their "
                "mean and std for normalised ones"
            )
        return images * 255

    def get_extra_state(self) -> Tensor:
        """The step, in the state_dict."""
        return torch.tensor(self.step)

    def set_extra_state(self, state: Tensor) -> None:
        """The step, from a state_dict."""
        self._begin(int(state))


def _recipe(method: str, name: str, encoder: Backbone, image_size: int, options: Mapping[str, Any]) -> Recipe:
    """The recipe with the user's options; of a network without a name, that for a named one of its kind."""
    known_as = getattr(encoder, "built_from", {}).get("name")
    if known_as is None:
        known_as = "swin-t" if encoder.hierarchical else "vit-s/16" if encoder.plain else "vitc-15mf"
    file = methods.get(method)
    recipe = file.recipe(name)(image_size, known_as)
    if hasattr(recipe.config, "period"):  # views cannot repeat: images have no numbers here
        options = {"period": 0, **options}
    config = requirements.configured(method, recipe.config, options)
    return file.adapted(dataclasses.replace(recipe, config=config), backbones.options(known_as))


def _refuse(
    name: str, needs: Needs, frames: Frames | None, classes: Sequence[str], model: Trained | None
) -> None:
    """Raise ValueError for what the method lacks beside images and encoder."""
    if needs.text or needs.numbered or needs.fields or frames is not None:
        what = "captions" if needs.text else "the numbers of images in their data set"
        what = "sequences, or columns of a table" if needs.fields or frames is not None else what
        raise ValueError(f"{name} learns from {what}, which Objective does not take: use omma.pretrain")
    if needs.labels and not classes:
        raise ValueError(f"{name} learns from labels: give classes, and labels with each batch")
    if needs.model and model is None:
        raise ValueError(f"{name} learns from {needs.kind}: give model=omma.load(...)")
    if needs.beside and model is not None and not set(needs.beside) & set(model.extras.tensors):
        raise ValueError(f"model is not what {name} learns from, {needs.kind}: load another")


def _check_labels(name: str, labels: Int[Tensor, "b"] | None, images: int, classes: int) -> None:
    if labels is None:
        raise ValueError(f"{name} learns from labels: call the objective with images and labels")
    if labels.shape != (images,) or labels.is_floating_point() or int(labels.max()) >= classes:
        raise ValueError(f"labels must be {images} whole numbers below {classes}, or -1: one for each image")
