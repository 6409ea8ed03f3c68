"""Linear probe: multinomial logistic regression on frozen features, chosen on held-out train images.

Two solvers. L-BFGS (at most 100 iterations a fit) chooses the L2 penalty; it serves small sets. SGD trains
one head for each learning rate in one pass over the features, as DINOv2's protocol does (2304.07193), and
chooses the rate; it serves sets on which a full-batch iteration costs seconds. `solver="auto"` takes L-BFGS
while images x dimensions x classes <= SMALL (about .1 s an iteration on two cores).
Both standardise the features by the statistics of what they are fitted on, and neither sees the test part
before its one prediction.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from omma.evaluation.split import Answer, Split, checked, holdouts, standardise

Solver = Literal["auto", "lbfgs", "sgd"]
SMALL = 2e9
PAST_BEST = 0.02  # weaker penalties are not tried once held-out accuracy lies this far under its best
PENALTIES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # strong to weak, so that each fit starts the next
RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # for a batch of 256, scaled linearly
BATCH, EPOCHS, MOMENTUM = 1024, 20, 0.9


def predict(
    data: Split, seed: int = 0, solver: Solver = "auto", device: torch.device | str = "cpu"
) -> Answer:
    """Predicted labels of the test part, and the chosen penalty or rate with its held-out accuracy."""
    data = checked(data)
    if solver == "auto":
        solver = "lbfgs" if data.train.size * data.classes <= SMALL else "sgd"
    fit = {"lbfgs": _lbfgs_path, "sgd": _sgd_grid}[solver]
    grid = {"lbfgs": PENALTIES, "sgd": RATES}[solver]
    pairs = holdouts(data.train_labels, seed)
    answers = []
    for fitted, held in pairs:
        x, x_held = standardise(data.train[fitted], data.train[held])
        answers.append(fit(x, data.train_labels[fitted], data.classes, x_held, grid, seed, device))
    scores: list[float] = []
    for found in zip(*answers):
        right = [(a == data.train_labels[held]).mean() for a, (_, held) in zip(found, pairs)]
        scores.append(float(np.mean(right)))
        if solver == "lbfgs" and scores[-1] < max(scores) - PAST_BEST:
            break
    best = int(np.argmax(scores))  # the first of equals: the strongest penalty, the gentlest rate
    x, x_test = standardise(data.train, data.test)
    (predictions,) = fit(x, data.train_labels, data.classes, x_test, grid[best : best + 1], seed, device)
    chosen = {"lbfgs": "penalty", "sgd": "rate"}[solver]
    settings = {"solver": solver, chosen: grid[best], "held_out_top1": round(scores[best], 4)}
    return Answer(predictions, settings)


def _lbfgs_path(
    x: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, "n"],
    classes: int,
    query: Float[np.ndarray, "m d"],
    penalties: Sequence[float],
    seed: int,  # convex and full-batch: nothing is random
    device: torch.device | str,
) -> Iterator[Int[np.ndarray, "m"]]:
    """Predicted labels of `query` under mean cross-entropy + penalty/2 |W|^2, each started from the last."""
    features, queries = torch.from_numpy(x).to(device), torch.from_numpy(query).to(device)
    targets = torch.from_numpy(labels).to(device)
    weight = torch.zeros(x.shape[1], classes, device=device)
    bias = torch.zeros(classes, device=device)
    rows = torch.arange(len(x), device=device)
    for penalty in penalties:
        optimizer = torch.optim.LBFGS(
            [weight, bias],
            max_iter=100,
            tolerance_grad=1e-5,
            tolerance_change=1e-8,
            line_search_fn="strong_wolfe",
        )

        def loss(penalty: float = penalty) -> Tensor:
            logs = torch.log_softmax(features @ weight + bias, dim=1)
            value = -logs[rows, targets].mean() + penalty / 2 * weight.square().sum()
            slope = logs.exp_()
            slope[rows, targets] -= 1
            slope /= len(rows)
            weight.grad, bias.grad = features.T @ slope + penalty * weight, slope.sum(0)
            return value

        optimizer.step(loss)  # pyright: ignore[reportArgumentType]
        yield (queries @ weight + bias).argmax(1).cpu().numpy()


def _sgd_grid(
    x: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, "n"],
    classes: int,
    query: Float[np.ndarray, "m d"],
    rates: Sequence[float],
    seed: int,
    device: torch.device | str,
) -> Iterator[Int[np.ndarray, "m"]]:
    """Predicted labels of `query` by one head a rate, all trained on the same batches by one matrix product.

    SGD with momentum, no decay, cosine to 0. Rates are divided by d / 192, roughly the curvature's growth
    with the number of standardised dimensions.
    """
    features, targets = torch.from_numpy(x).to(device), torch.from_numpy(labels).to(device)
    n, d, heads = *x.shape, len(rates)
    batch = min(BATCH, n)
    scaled = torch.tensor(rates, device=device) * batch / 256 * 192 / max(d, 192)
    weight, bias = torch.zeros(d, heads * classes, device=device), torch.zeros(heads * classes, device=device)
    motion, bias_motion = torch.zeros_like(weight), torch.zeros_like(bias)
    generator = torch.Generator().manual_seed(seed)
    steps, step = EPOCHS * (n // batch), 0
    for _ in range(EPOCHS):
        for index in torch.randperm(n, generator=generator)[: n // batch * batch].to(device).split(batch):
            inputs = features[index]
            logits = (inputs @ weight + bias).view(batch, heads, classes)
            slope = torch.softmax(logits, dim=-1)
            slope.scatter_add_(
                2,
                targets[index, None, None].expand(batch, heads, 1),
                slope.new_full((batch, heads, 1), -1.0),
            )
            slope = slope.view(batch, -1) / batch
            motion.mul_(MOMENTUM).add_(inputs.T @ slope)
            bias_motion.mul_(MOMENTUM).add_(slope.sum(0))
            rate = (scaled * 0.5 * (1 + np.cos(np.pi * step / steps))).repeat_interleave(classes)
            weight.sub_(motion * rate)
            bias.sub_(bias_motion * rate)
            step += 1
    queries = torch.from_numpy(query).to(device)
    for head in range(heads):
        one = slice(head * classes, (head + 1) * classes)
        yield (queries @ weight[:, one] + bias[one]).argmax(1).cpu().numpy()
