"""The training loop: a generator that yields after every optimizer step."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from omma import dist
from omma.ops.random import derive
from omma.ops.schedules import cosine, warmup_cosine
from omma.protocols import Batch, Clock, Method, ParamGroup, Recipe, StepOutput
from omma.train import parallel, sharding
from omma.train.precision import Cast
from omma.train.profile import OFF, Part, Stopwatch


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
    groups = sharding.split(groups)
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


def _exchanged(
    gradients: parallel.Gradients, outputs: Sequence[StepOutput], said: Sequence[float]
) -> tuple[dict[str, float], tuple[float, ...]]:
    """The metrics' means and the sums of what was said, over all processes; gradients are the means, too.

    One message beside the gradients, however many metrics there are.
    """
    found = gradients.finish()
    means = {
        n: float(torch.stack([o.metrics[n] for o in outputs]).float().mean()) for n in outputs[0].metrics
    }
    sums = dist.sums([*means.values(), *said, *found])
    gradients.settle(sums[len(means) + len(said) :])
    metrics = {name: total / dist.world() for name, total in zip(means, sums)}
    return metrics, tuple(sums[len(means) : len(means) + len(said)])


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

    say: numbers of this process, asked for in each step; `Step.heard` has their sums over all processes,
    which travel with the metrics and cost no message of their own.
    """
    source = iter(batches)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    gradients = parallel.Gradients(method, trained)
    call = Cast(method, dtype, gradients.add if dist.active() else None)
    # all that a forward pass changes
    statistics = [b for m in method.modules() if isinstance(m, _BatchNorm) for b in m.buffers()]
    method.train()
    while position.step < position.total:
        watch.begin(position.total - position.step)
        clock = position.clock()
        torch.manual_seed(derive(seed, position.step, dist.rank()))
        lr = schedule(optimizer, recipe, clock)
        _freeze(optimizer, clock)
        before = [b.clone() for b in statistics]
        optimizer.zero_grad()
        gradients.begin()
        taken, outputs, losses = [], [], []
        for part in range(accumulate):
            watch.to(Part.WAIT)
            batch = next(source)
            watch.to(Part.LOSS)
            output = call(batch, clock)
            losses.append(dist.mean(output.loss.detach()))
            if part == accumulate - 1:
                gradients.last()
            if torch.isfinite(losses[-1]):  # of all processes: none may wait for another's gradients in vain
                watch.to(Part.BACKWARD)
                (output.loss / accumulate).backward()
            taken.append(batch)
            outputs.append(output)
        watch.to(Part.OPTIMIZER)
        metrics, heard = _exchanged(gradients, outputs, say())
        loss = torch.stack(losses).mean()
        grads = [p.grad for p in trained if p.grad is not None]
        norm = parallel.norm(grads)
        if recipe.clip is not None and norm > recipe.clip:
            parallel.clip(trained, recipe.clip, norm)
        finite = bool(torch.isfinite(loss)) and bool(torch.isfinite(norm))
        if finite:
            optimizer.step()
            watch.to(Part.AFTER)
            method.after_step(clock, [o.carry for o in outputs])
        else:
            for now, then in zip(statistics, before, strict=True):
                now.copy_(then)
        position.step += 1
        watch.to(Part.REST)
        yield Step(clock, float(loss), metrics, lr, float(norm), heard, None if finite else taken)
        method.train()  # whoever looked in between may have switched to eval


def moved(batch: Batch, device: torch.device) -> Batch:
    """The batch on another device."""

    def to(x: Tensor) -> Tensor:
        return x.to(device, non_blocking=True)

    labels, text = (None if x is None else to(x) for x in (batch.labels, batch.text))
    return Batch(tuple(map(to, batch.views)), batch.key, labels, text)
