"""The training loop: a generator that yields after every optimizer step."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from omma.core import collectives, dist
from omma.core.device import to_device
from omma.core.protocols import Batch, Clock, Method, Recipe, StepOutput
from omma.core.random import derive
from omma.train import clipping, ddp, resolution
from omma.train.optimizer import freeze, schedule
from omma.train.precision import Cast
from omma.train.profile import OFF, Phase, Stopwatch


@dataclass
class Position:
    """Where a run is. `total` may change between steps, so that a run can end at a time."""

    step: int
    total: int
    batch: int  # images a step, over all processes
    images: int  # in the data set
    epoch_steps: int | None = None  # steps that make an epoch; None: `epoch_passes`
    epoch_passes: float = 1.0  # over the images, that make an epoch

    @classmethod
    def of(cls, recipe: Recipe, images: int, step: int = 0, total: int = 1) -> "Position":
        """The place in a run on so many images."""
        return cls(step, total, recipe.batch, images, recipe.epoch_steps, recipe.epoch_passes)

    def clock(self) -> Clock:
        if self.epoch_steps is not None:
            passes = self.epoch_steps * self.batch / self.images
            epoch, epochs = self.step / self.epoch_steps, self.total / self.epoch_steps
            return Clock(self.step, self.total, epoch, epochs, passes)
        # the product first, so that whole epochs are whole numbers
        seen, whole, per = self.step * self.batch, self.total * self.batch, self.images * self.epoch_passes
        return Clock(self.step, self.total, seen / per, whole / per, self.epoch_passes)


@dataclass(frozen=True)
class Step:
    """The result of one optimizer step."""

    clock: Clock  # the step's own: `clock.step` is its number, counted from 0
    loss: float
    metrics: dict[str, float]
    lr: float
    gradient_norm: float
    summed: tuple[float, ...] = ()  # sums over processes of `local_values`
    rejected: list[Batch] | None = None  # the micro-batches, if loss or gradient was not finite


def train(
    method: Method,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Batch],
    recipe: Recipe,
    position: Position,
    *,
    dtype: torch.dtype = torch.float32,
    accumulate: int = 1,
    seed: int = 0,
    local_values: Callable[[], Sequence[float]] = tuple,
    watch: Stopwatch = OFF,
) -> Iterator[Step]:
    """Steps until `position.total`; each takes `accumulate` batches as its micro-batches.

    All randomness inside a step (stochastic depth) derives from (seed, step, rank), so a resumed run repeats
    an uninterrupted one. A step whose loss or gradient is not finite changes nothing and returns its batches
    as `rejected`.

    local_values: called once a step; `Step.summed` holds the sums of its numbers over all processes.
    watch: receives the phase that each step enters.

    The loop waits for a GPU once a step, when it reads loss, norm and metrics; a method may wait as well.
    """
    source = iter(batches)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    gradients = ddp.Gradients(method, trained)
    call = Cast(method, dtype, gradients.add if dist.is_distributed() else None)
    # batch statistics are the only state that a forward pass changes
    statistics = [b for m in method.modules() if isinstance(m, _BatchNorm) for b in m.buffers()]
    prefetched: Batch | None = None
    method.train()
    in_training = [m for m in method.modules() if m.training]  # a teacher, for one, stays in evaluation mode
    while position.step < position.total:
        watch.begin(position.total - position.step)
        clock = position.clock()
        torch.manual_seed(derive(seed, position.step, dist.rank()))
        lr = schedule(optimizer, recipe, clock)
        freeze(optimizer, clock)
        statistics_before = [b.clone() for b in statistics]
        optimizer.zero_grad()
        gradients.begin()
        micro_batches: list[Batch] = []
        outputs: list[StepOutput] = []
        for i in range(accumulate):
            if prefetched is None:
                watch.to(Phase.WAIT)
                prefetched = next(source)
            batch, prefetched = prefetched, None
            watch.to(Phase.LOSS)
            if (scale := recipe.scale(clock)) != 1.0:
                batch = resolution.scaled(batch, scale, method.encoder.patch)
            output = call(batch, clock)
            if i == accumulate - 1:
                gradients.expect_last()
            watch.to(Phase.BACKWARD)
            (output.loss / accumulate).backward()
            micro_batches.append(batch)
            outputs.append(output)
        watch.to(Phase.OPTIMIZER)
        summed = _reduce(gradients, local_values())
        norm = clipping.norm([p.grad for p in trained if p.grad is not None])
        if recipe.clip is not None:
            clipping.clip(optimizer, recipe.clip, recipe.clip_by, norm)
        means = _means(outputs)
        if position.step + 1 < position.total:  # a GPU makes the next views while its numbers are read
            watch.to(Phase.WAIT)
            prefetched = next(source)
            watch.to(Phase.OPTIMIZER)
        loss, *values, length = torch.cat([means, norm.float().to(means.device)[None]]).tolist()
        metrics = dict(zip(outputs[0].metrics, values, strict=True))
        finite = math.isfinite(loss) and math.isfinite(length)
        if finite:
            optimizer.step()
            watch.to(Phase.AFTER)
            method.after_step(clock, [o.carry for o in outputs])
        else:
            for now, before in zip(statistics, statistics_before, strict=True):
                now.copy_(before)
        position.step += 1
        watch.to(Phase.REST)
        yield Step(clock, loss, metrics, lr, length, summed, None if finite else micro_batches)
        if not all(m.training for m in in_training):
            method.train()  # the caller may have switched to evaluation mode


def _reduce(gradients: ddp.Gradients, values: Sequence[float]) -> tuple[float, ...]:
    """Replace gradients by their means over processes; returns the sums of `values` over processes.

    Besides the gradients one message is sent, of numbers on the host.
    """
    present = gradients.finish()
    sums = dist.sum_floats([*values, *present])
    gradients.drop_absent(sums[len(values) :])
    return tuple(sums[: len(values)])


def _means(outputs: Sequence[StepOutput]) -> Float[Tensor, "m"]:
    """Loss and metrics, means over micro-batches and processes, still on the device."""
    device = outputs[0].loss.device
    rows = [
        torch.stack([x.detach().float().to(device) for x in (o.loss, *o.metrics.values())]) for o in outputs
    ]
    return collectives.mean(torch.stack(rows).mean(0))


def moved(batch: Batch, device: torch.device) -> Batch:
    """The batch on another device."""

    labels, text, sets = (
        None if x is None else to_device(x, device) for x in (batch.labels, batch.text, batch.label_sets)
    )
    fields = {name: to_device(values, device) for name, values in batch.fields.items()}
    views = tuple(to_device(view, device) for view in batch.views)
    return Batch(views, batch.key, labels, text, sets, fields)
