"""Linear probe: multinomial logistic regression on frozen features, chosen on held-out train images.

Two solvers. L-BFGS (scikit-learn's) chooses the L2 penalty; it serves small sets. SGD trains one head for
each learning rate in one pass over the features, as DINOv2's protocol does (2304.07193), and chooses the
rate; it serves sets on which a full-batch iteration costs seconds. `solver="auto"` takes L-BFGS while
images x dimensions x classes <= SMALL (about .1 s an iteration on two cores).
Both standardise the features by the statistics of the images they are fitted on, and neither sees the test
part before its final prediction.
"""

import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import one_hot

from omma.evaluation.split import Answer, Split, checked, holdouts, standardise

Solver = Literal["auto", "lbfgs", "sgd"]
SMALL = 2e9
PAST_BEST = 0.02  # weaker penalties are not tried once held-out accuracy is this far below its best
PENALTIES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # strong to weak, so that each fit starts the next
ITERATIONS = 1000  # at most, of L-BFGS
RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # for a batch of 256, scaled linearly
BATCH, EPOCHS, MOMENTUM = 1024, 20, 0.9


def predict(
    data: Split, seed: int = 0, solver: Solver = "auto", device: torch.device | str = "cpu"
) -> Answer:
    """Labels and probabilities of the test part, and the chosen penalty or rate with its held-out accuracy.

    device: for SGD; L-BFGS runs on the CPU.
    """
    data = checked(data)
    if solver == "auto":
        solver = "lbfgs" if data.train.size * data.classes <= SMALL else "sgd"
    sgd = partial(_sgd_grid, classes=data.classes, seed=seed, device=device)
    fit, grid, chosen = (_lbfgs_path, PENALTIES, "penalty") if solver == "lbfgs" else (sgd, RATES, "rate")
    pairs = holdouts(data.train_labels, seed)
    paths = []
    for fitted, held_out in pairs:
        x, x_held_out = standardise(data.train[fitted], data.train[held_out])
        paths.append(fit(x, data.train_labels[fitted], x_held_out, grid))
    accuracies: list[float] = []
    for answers in zip(*paths):  # of all hold-outs, for one penalty or rate
        correct = [(p == data.train_labels[held_out]).mean() for (p, _), (_, held_out) in zip(answers, pairs)]
        accuracies.append(float(np.mean(correct)))
        if solver == "lbfgs" and accuracies[-1] < max(accuracies) - PAST_BEST:
            break
    best = int(np.argmax(accuracies))  # ties: the strongest penalty, the lowest rate
    x, x_test = standardise(data.train, data.test)
    ((predictions, found),) = fit(x, data.train_labels, x_test, grid[best : best + 1])
    probabilities = np.zeros((len(found), data.classes), np.float32)
    probabilities[:, np.unique(data.train_labels) if solver == "lbfgs" else slice(None)] = found
    settings = {"solver": solver, chosen: grid[best], "held_out_top1": round(accuracies[best], 4)}
    return Answer(predictions, settings, probabilities, True)


def _lbfgs_path(
    x: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, "n"],
    query: Float[np.ndarray, "m d"],
    penalties: Sequence[float],
) -> Iterator[tuple[Int[np.ndarray, "m"], Float[np.ndarray, "m c"]]]:
    """Labels and probabilities of `query`, the latter of the classes that `labels` has, for each penalty.

    They minimise the mean cross-entropy + penalty / 2 |W|^2; each fit starts the next.
    """
    model = LogisticRegression(warm_start=True, max_iter=ITERATIONS)
    # for two classes scikit-learn fits the difference of their weights, whose square is twice |W|^2
    weight = len(x) / 2 if len(np.unique(labels)) == 2 else len(x)
    for penalty in penalties:
        model.C = 1 / (penalty * weight)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(x, labels)
        yield np.asarray(model.predict(query)), np.asarray(model.predict_proba(query))


def _sgd_grid(
    x: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, "n"],
    query: Float[np.ndarray, "m d"],
    rates: Sequence[float],
    *,
    classes: int,
    seed: int,
    device: torch.device | str,
) -> Iterator[tuple[Int[np.ndarray, "m"], Float[np.ndarray, "m c"]]]:
    """Labels and probabilities of `query` by one head a rate; one matrix product a batch trains all heads.

    SGD with momentum, without weight decay, with a cosine schedule to 0. Rates are divided by d / 192, since
    the curvature grows roughly with the number of standardised dimensions.
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
            slope = torch.softmax(logits, dim=-1) - one_hot(targets[index], classes)[:, None]
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
        logits = queries @ weight[:, one] + bias[one]
        yield logits.argmax(1).cpu().numpy(), logits.softmax(1).cpu().numpy()
