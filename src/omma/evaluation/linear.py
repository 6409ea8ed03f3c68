"""Linear classifiers on frozen features, whose strength is chosen on held-out train images.

Three losses: softmax cross-entropy (multinomial logistic regression), sigmoid cross-entropy (one class
against the rest, for several labels an image), and the squared hinge (scikit-learn's LinearSVC).

Two solvers. L-BFGS chooses the L2 penalty; it serves small sets. SGD trains one head for each learning rate
in one pass over the features, as DINOv2's protocol does (2304.07193), and chooses the rate; it serves sets on
which a full-batch iteration costs seconds. `solver="auto"` takes L-BFGS while
images x dimensions x classes <= SMALL (about .1 s an iteration on two cores).
Both standardise the features by the statistics of the images they are fitted on, and neither sees the test
part before its final prediction.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import minimize
from torch import Tensor

from omma.evaluation import knn
from omma.evaluation.average_precision import mean_average_precision
from omma.evaluation.split import Answer, Pairs, Split, checked, holdouts, scaling

Solver = Literal["auto", "lbfgs", "sgd"]
Loss = Literal["softmax", "sigmoid", "hinge"]
SMALL = 2e9
PAST_BEST = 0.02  # weaker penalties are not tried once the held-out score is this far below its best
PENALTIES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # strong to weak, so that each fit starts the next
ITERATIONS = 1000  # at most, of L-BFGS
CONVERGED = 1e-4  # largest entry of the gradient, as in scikit-learn's LogisticRegression
CURVATURE = {"softmax": 0.25, "sigmoid": 0.25, "hinge": 2.0}  # of the losses, at most, for a logit
RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # for a batch of 256, scaled linearly
BATCH, EPOCHS, MOMENTUM = 1024, 20, 0.9
NEVER = -1e4  # the logit of a class that is never the answer

Settings = dict[str, Any]  # solver, penalty or rate, and its held-out score


class Linear(NamedTuple):
    """Logits of features x: W ((x - mean) scale) + b."""

    weight: Float[np.ndarray, "k d"]
    bias: Float[np.ndarray, "k"]
    mean: Float[np.ndarray, "d"]
    scale: Float[np.ndarray, "d"]

    def __call__(self, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n k"]:
        return ((x - self.mean) * self.scale) @ self.weight.T + self.bias

    def folded(self) -> tuple[Float[np.ndarray, "k d"], Float[np.ndarray, "k"]]:
        """Weight and bias for features as they are, in fp32."""
        weight = self.weight.astype(np.float64) * self.scale
        return weight.astype(np.float32), (self.bias - weight @ self.mean).astype(np.float32)


def predict(
    data: Split, seed: int = 0, solver: Solver = "auto", device: torch.device | str = "cpu"
) -> Answer:
    """Labels and probabilities of the test part, and the chosen penalty or rate with its held-out accuracy.

    device: for SGD; L-BFGS runs on the CPU.
    """
    data = checked(data)
    targets = one_hot(data.train_labels, data.classes)
    pairs = holdouts(data.train_labels, seed, groups=data.train_groups)
    settings = choose(data.train, targets, pairs=pairs, seed=seed, solver=solver, device=device)
    logits = fit(data.train, targets, settings, seed=seed, device=device)(data.test)
    trained = np.unique(data.train_labels)
    scores = np.zeros((len(logits), data.classes), np.float32)
    scores[:, trained] = torch.from_numpy(logits[:, trained]).softmax(-1).numpy()
    return Answer(scores.argmax(1), settings, scores, True)


def predict_sets(
    train: Float[np.ndarray, "n d"],
    sets: Int[np.ndarray, "n k"],
    strata: Int[np.ndarray, "n"],
    test: Float[np.ndarray, "m d"],
    seed: int = 0,
    device: torch.device | str = "cpu",
    groups: Int[np.ndarray, "n"] | None = None,
) -> Answer:
    """With several labels an image: probabilities of the test part, which do not sum to 1, and the choice.

    sets: 1, the class applies; 0, it does not; -1, not known, which no loss counts. strata: one class an
    image, to hold out by. groups: of train images, none of which is held out in part.
    """
    targets = one_hot(sets, sets.shape[1])
    options: dict[str, Any] = {"loss": "sigmoid", "seed": seed, "device": device}
    settings = choose(train, targets, pairs=holdouts(strata, seed, groups=groups), **options)
    scores = torch.from_numpy(fit(train, targets, settings, **options)(test)).sigmoid().numpy()
    return Answer(scores.argmax(1), settings, scores)


def one_hot(labels: Int[np.ndarray, "n *k"], classes: int) -> Float[np.ndarray, "n k"]:
    """Targets, float32: 1 for each image's class and 0 for the others; label sets as they are."""
    return labels.astype(np.float32) if labels.ndim == 2 else np.eye(classes, dtype=np.float32)[labels]


def choose(
    x: Float[np.ndarray, "n d"],
    targets: Float[np.ndarray, "n k"],
    *,
    loss: Loss = "softmax",
    weights: Float[np.ndarray, "k"] | None = None,
    pairs: Pairs | None = None,
    seed: int = 0,
    solver: Solver = "auto",
    device: torch.device | str = "cpu",
    common: bool = False,
) -> Settings:
    """The solver, and its penalty (L-BFGS) or rate (SGD) with the best score on held-out images.

    x: float32, finite. targets: 1 for the classes that an image has, 0 for others; with the loss "sigmoid"
    -1 for what is not known. weights: of each class's images ("sigmoid": of each class's positives).
    common: divide all dimensions by one number, where other images may vary in other dimensions.
    pairs: what is held out; by default `holdouts`, which raises ValueError where no class has two images.
    The score is the accuracy, with "sigmoid" the mean average precision; ties go to the strongest penalty,
    the lowest rate.
    """
    if solver == "auto":
        solver = "lbfgs" if x.size * targets.shape[1] <= SMALL else "sgd"
    path, grid, name = _path(solver, loss, weights, seed, device, common)
    pairs = holdouts(targets.argmax(1), seed) if pairs is None else pairs
    candidates = [path(x[fitted], targets[fitted], grid) for fitted, _ in pairs]
    scores: list[float] = []
    for each in zip(*candidates):  # of all hold-outs, for one penalty or rate
        held_out = [score(linear(x[h]), targets[h], loss) for linear, (_, h) in zip(each, pairs)]
        scores.append(float(np.mean(held_out)))
        if solver == "lbfgs" and scores[-1] < max(scores) - PAST_BEST:
            break
    best = int(np.argmax(scores))
    metric = "held_out_map" if loss == "sigmoid" else "held_out_top1"
    return {"solver": solver, name: grid[best], metric: round(scores[best], 4)}


def fit(
    x: Float[np.ndarray, "n d"],
    targets: Float[np.ndarray, "n k"],
    settings: Settings,
    *,
    loss: Loss = "softmax",
    weights: Float[np.ndarray, "k"] | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    common: bool = False,
) -> Linear:
    """Fit with a solver ("means": `class_means`), and its penalty or rate, as `choose` gives them."""
    if settings["solver"] == "means":
        return class_means(x, targets)
    path, _, name = _path(settings["solver"], loss, weights, seed, device, common)
    (linear,) = path(x, targets, [settings[name]])
    return linear


def class_means(x: Float[np.ndarray, "n d"], targets: Float[np.ndarray, "n k"]) -> Linear:
    """The class whose mean of unit vectors is nearest by cosine, as a linear classifier.

    Logits are |x| cos(x, mean of class), scaled so that they are cos / T for a vector of mean length, with
    the T of k-NN. It has nothing to choose, so one image a class suffices; a class without any is never
    the answer.
    """
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    means = targets.T @ (x / np.maximum(lengths, 1e-12))
    weight = means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    weight /= knn.TEMPERATURE * max(float(lengths.mean()), 1e-12)
    d = x.shape[1]
    bias = np.where(targets.any(0), 0.0, NEVER).astype(np.float32)
    return Linear(weight.astype(np.float32), bias, np.zeros(d, np.float32), np.ones(d, np.float32))


def score(
    logits: Float[np.ndarray, "n k"], targets: Float[np.ndarray, "n k"], loss: Loss = "softmax"
) -> float:
    """The accuracy; with "sigmoid" the mean over classes that have positives of the average precision."""
    if loss != "sigmoid":
        return float((logits.argmax(1) == targets.argmax(1)).mean())
    return mean_average_precision(logits, targets)


# ---------------------------------------------------------------- inside
def _path(
    solver: Solver,
    loss: Loss,
    weights: np.ndarray | None,
    seed: int,
    device: torch.device | str,
    common: bool,
) -> tuple[Any, Sequence[float], str]:
    """(x, targets, grid) -> a classifier for each entry of the grid; the grid; and what it is a grid of."""
    shared: dict[str, Any] = {"loss": loss, "weights": weights, "common": common}
    if solver == "lbfgs":
        return partial(_lbfgs_path, **shared), PENALTIES, "penalty"
    return partial(_sgd_grid, **shared, seed=seed, device=device), RATES, "rate"


def _importance(targets: Tensor, loss: Loss, weights: np.ndarray | None) -> Tensor:
    """[n, 1], or with one loss a class [n, k]: the weight of each entry's loss; each column sums to 1."""
    each = torch.ones(targets.shape[1]) if weights is None else torch.from_numpy(weights).float()
    each = each.to(targets.device)
    if loss == "sigmoid":
        w = torch.where(targets > 0, each, torch.ones_like(targets)) * (targets >= 0)
    else:
        w = (targets @ each)[:, None]
    return w / w.sum(0).clamp(min=torch.finfo(torch.float32).tiny)


def _loss(logits: Tensor, targets: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
    """The loss of each image ("softmax": [..., 1], else of each class) and its slope for each logit."""
    if loss == "softmax":
        logs = logits.log_softmax(-1)
        return -(logs * targets).sum(-1, keepdim=True), logs.exp() - targets
    if loss == "sigmoid":
        return torch.nn.functional.softplus(logits) - logits * targets, logits.sigmoid() - targets
    sign = 2 * targets - 1
    short = (1 - sign * logits).clamp(min=0)
    return short.square(), -2 * sign * short


def _lbfgs_path(
    x: Float[np.ndarray, "n d"],
    targets: Float[np.ndarray, "n k"],
    penalties: Sequence[float],
    *,
    loss: Loss = "softmax",
    weights: Float[np.ndarray, "k"] | None = None,
    common: bool = False,
) -> Iterator[Linear]:
    """Minimise the mean loss + penalty / 2 |W|^2 for each penalty; each fit starts the next.

    L-BFGS sees W times a root of the loss's largest curvature, CURVATURE X'X / n + penalty: the same minimum
    in a tenth of the steps where features are correlated.
    """
    mean, scale = scaling(x, common)
    inputs, wanted = torch.from_numpy((x - mean) * scale), torch.from_numpy(targets)
    basis = None
    if len(x) < x.shape[1]:  # the minimum lies in the images' span, which has fewer dimensions
        basis, triangle = torch.linalg.qr(inputs.T)
        inputs = triangle.T.contiguous()
    importance = _importance(wanted, loss, weights)
    classes, d = targets.shape[1], inputs.shape[1]
    curvature = (inputs.T @ inputs).double() * (CURVATURE[loss] / len(x))
    rounding = 1e-6 * float(
        curvature.trace()
    )  # above that of the product, which may have negative eigenvalues

    def objective(flat: np.ndarray, root: Tensor, penalty: float) -> tuple[float, np.ndarray]:
        both = torch.from_numpy(flat).view(classes, d + 1)
        weight = torch.linalg.solve_triangular(root, both[:, :-1], upper=False, left=False).float()
        losses, slope = _loss(torch.addmm(both[:, -1].float(), inputs, weight.T), wanted, loss)
        slope = slope * importance
        gradient = (slope.T @ inputs + penalty * weight).double()
        gradient = torch.linalg.solve_triangular(root.T, gradient, upper=True, left=False)
        gradient = torch.cat([gradient, slope.sum(0)[:, None]], 1)
        value = (losses * importance).double().sum() + penalty / 2 * weight.double().square().sum()
        return float(value), gradient.numpy().ravel()

    options = {"maxiter": ITERATIONS, "gtol": CONVERGED, "ftol": 64 * np.finfo(np.float64).eps}
    weight, bias = torch.zeros(classes, d, dtype=torch.double), torch.zeros(classes, 1, dtype=torch.double)
    for penalty in penalties:
        root = torch.linalg.cholesky(curvature + (penalty + rounding) * torch.eye(d, dtype=torch.double))
        start = torch.cat([weight @ root, bias], 1).numpy().ravel()
        arguments: Any = {"args": (root, penalty), "jac": True, "method": "L-BFGS-B", "options": options}
        both = torch.from_numpy(minimize(objective, start, **arguments).x).view(classes, d + 1)
        weight, bias = (
            torch.linalg.solve_triangular(root, both[:, :-1], upper=False, left=False),
            both[:, -1:],
        )
        found = weight.float() if basis is None else weight.float() @ basis.T
        yield Linear(found.numpy(), bias[:, 0].float().numpy(), mean, scale)


def _sgd_grid(
    x: Float[np.ndarray, "n d"],
    targets: Float[np.ndarray, "n k"],
    rates: Sequence[float],
    *,
    loss: Loss,
    weights: Float[np.ndarray, "k"] | None,
    seed: int,
    device: torch.device | str,
    common: bool = False,
) -> Iterator[Linear]:
    """One head a rate; one matrix product a batch trains all heads.

    SGD with momentum, without weight decay, with a cosine schedule to 0. Rates are divided by d / 192, since
    the curvature grows roughly with the number of standardised dimensions.
    """
    mean, scale = scaling(x, common)
    features = torch.from_numpy((x - mean) * scale).to(device)
    wanted = torch.from_numpy(targets).to(device)
    n, d, heads, classes = *x.shape, len(rates), targets.shape[1]
    importance = _importance(wanted, loss, weights) * n
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
            slope = _loss(logits, wanted[index][:, None], loss)[1] * importance[index][:, None]
            slope = slope.view(batch, -1) / batch
            motion.mul_(MOMENTUM).add_(inputs.T @ slope)
            bias_motion.mul_(MOMENTUM).add_(slope.sum(0))
            rate = (scaled * 0.5 * (1 + np.cos(np.pi * step / steps))).repeat_interleave(classes)
            weight.sub_(motion * rate)
            bias.sub_(bias_motion * rate)
            step += 1
    for head in range(heads):
        one = slice(head * classes, (head + 1) * classes)
        yield Linear(weight[:, one].T.cpu().numpy().copy(), bias[one].cpu().numpy().copy(), mean, scale)
