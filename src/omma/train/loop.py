"""The training loop: a generator that yields after every optimizer step."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from omma.core import collectives, dist
from omma.core.protocols import Batch, Clock, Method, ParamGroup, Recipe, StepOutput
from omma.core.random import derive
from omma.train import ddp, fsdp
from omma.train.precision import Cast
from omma.train.profile import OFF, Part, Stopwatch
from omma.train.schedules import cosine, warmup_cosine


@dataclass
class Position:
    """Where a run is. `total` may be changed between steps, to end at a time rather than a number."""

    step: int
    total: int
    batch: int  # images a step, over all processes
    images: int  # in the data set

    def clock(self) -> Clock:
        per_step = self.batch / self.images
        return Clock(self.step, self.total, self.step * per_step, self.total * per_step)


@dataclass(frozen=True)
class Step:
    """One optimizer step, after the fact."""

    clock: Clock  # the step's own: `clock.step` is its number, counted from 0
    loss: float
    metrics: dict[str, float]
    lr: float
    gradient_norm: float
    heard: tuple[float, ...] = ()  # sums over processes of what each said
    rejected: list[Batch] | None = None  # the batches, if loss or gradient was not finite and nothing moved


def make_optimizer(
    method: Method, recipe: Recipe, labelled: Iterable[ParamGroup] | None = None
) -> torch.optim.AdamW:
    """AdamW over the method's labelled groups, or over those given in their place."""
    groups = [
        {
            "params": list(group.params),
            "label": group.label,
            "lr_scale": group.lr_scale,
            "decay": group.decay,
            "frozen_until": group.frozen_until,
            "frozen_share": group.frozen_share,
        }
        for group in (method.groups() if labelled is None else labelled)
    ]
    groups = fsdp.split(groups)
    fused = all(p.device.type in ("cpu", "cuda") for g in groups for p in g["params"])
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, weight_decay=0.0, fused=fused)


def schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, clock: Clock) -> float:
    """Set every group's learning rate and decay for this step; returns the unscaled learning rate."""
    lr = warmup_cosine(clock, recipe.lr, recipe.lr_end, recipe.warmup)
    end = recipe.weight_decay if recipe.weight_decay_end is None else recipe.weight_decay_end
    decay = cosine(recipe.weight_decay, end, clock.progress)
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
        group["weight_decay"] = decay if group["decay"] else 0.0
    return lr


def _freeze(optimizer: torch.optim.Optimizer, clock: Clock) -> None:
    """Take frozen groups out of the graph, which saves their backward pass, and let the others in.

    Without a gradient a parameter is neither moved nor decayed, and its moments do not age.
    """
    for group in optimizer.param_groups:
        share = group.get("frozen_share", 0.0)  # a checkpoint of omma 0.1 says nothing of it
        frozen = clock.epoch < group["frozen_until"] or clock.progress < share
        for p in group["params"]:
            p.requires_grad_(not frozen)


def _settled(gradients: ddp.Gradients, said: Sequence[float]) -> tuple[float, ...]:
    """Gradients are their means over processes now; returns the sums of what was said.

    One message beside the gradients, of numbers on the host.
    """
    found = gradients.finish()
    sums = dist.sum_floats([*said, *found])
    gradients.settle(sums[len(said) :])
    return tuple(sums[: len(said)])


def _figures(outputs: Sequence[StepOutput]) -> Float[Tensor, "m"]:
    """Loss and metrics, means over parts and processes, still on the device."""
    device = outputs[0].loss.device
    parts = [
        torch.stack([x.detach().float().to(device) for x in (o.loss, *o.metrics.values())]) for o in outputs
    ]
    return collectives.mean(torch.stack(parts).mean(0))


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
    say: Callable[[], Sequence[float]] = tuple,
    watch: Stopwatch = OFF,
) -> Iterator[Step]:
    """Steps until `position.total`; `accumulate` batches make one step.

    Everything random inside a step (stochastic depth) is drawn from (seed, step, rank), so a resumed run
    repeats an uninterrupted one. A step whose loss or gradient is not finite changes nothing and comes back
    with `rejected`. `watch` is told what each step is about to do.

    say: numbers of this process, asked for in each step; `Step.heard` has their sums over all processes.

    The loop itself waits for a GPU once a step, when it reads loss, norm and metrics; a method may do so too.
    """
    source = iter(batches)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    gradients = ddp.Gradients(method, trained)
    call = Cast(method, dtype, gradients.add if dist.is_distributed() else None)
    # all that a forward pass changes
    statistics = [b for m in method.modules() if isinstance(m, _BatchNorm) for b in m.buffers()]
    ahead: Batch | None = None
    method.train()
    modules = [m for m in method.modules() if m.training]  # a teacher, say, stays as it is
    while position.step < position.total:
        watch.begin(position.total - position.step)
        clock = position.clock()
        torch.manual_seed(derive(seed, position.step, dist.rank()))
        lr = schedule(optimizer, recipe, clock)
        _freeze(optimizer, clock)
        before = [b.clone() for b in statistics]
        optimizer.zero_grad()
        gradients.begin()
        taken, outputs = [], []
        for part in range(accumulate):
            if ahead is None:
                watch.to(Part.WAIT)
                ahead = next(source)
            batch, ahead = ahead, None
            watch.to(Part.LOSS)
            output = call(batch, clock)
            if part == accumulate - 1:
                gradients.last()
            watch.to(Part.BACKWARD)
            (output.loss / accumulate).backward()
            taken.append(batch)
            outputs.append(output)
        watch.to(Part.OPTIMIZER)
        heard = _settled(gradients, say())
        norm = ddp.norm([p.grad for p in trained if p.grad is not None])
        if recipe.clip is not None:
            ddp.clip(trained, recipe.clip, norm)
        figures = _figures(outputs)
        if position.step + 1 < position.total:  # a GPU has the next views to make while its figures are read
            watch.to(Part.WAIT)
            ahead = next(source)
            watch.to(Part.OPTIMIZER)
        loss, *values, length = torch.cat([figures, norm.float().to(figures.device)[None]]).tolist()
        metrics = dict(zip(outputs[0].metrics, values, strict=True))
        finite = math.isfinite(loss) and math.isfinite(length)
        if finite:
            optimizer.step()
            watch.to(Part.AFTER)
            method.after_step(clock, [o.carry for o in outputs])
        else:
            for now, then in zip(statistics, before, strict=True):
                now.copy_(then)
        position.step += 1
        watch.to(Part.REST)
        yield Step(clock, loss, metrics, lr, length, heard, None if finite else taken)
        if not all(m.training for m in modules):
            method.train()  # whoever looked in between may have switched to eval


def moved(batch: Batch, device: torch.device) -> Batch:
    """The batch on another device."""

    def to(x: Tensor) -> Tensor:
        return x.to(device, non_blocking=device.type != "cpu")  # there nothing waits for what is to come

    labels, text = (None if x is None else to(x) for x in (batch.labels, batch.text))
    return Batch(tuple(map(to, batch.views)), batch.key, labels, text)
