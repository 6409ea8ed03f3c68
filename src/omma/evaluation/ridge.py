"""Ridge probe: least squares on one-hot labels in closed form, with the penalty chosen by leave-one-out.

Where train images have groups, the penalty is chosen on whole groups that are held out.

scikit-learn's RidgeClassifierCV(scoring="accuracy") gives the same predictions in 2.2 to 3.1 times the
processor time (docs/benchmarks.md, "Probes").
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from omma.evaluation.split import Answer, Split, checked, holdouts, standardise

PENALTIES = tuple(10.0**e for e in range(2, -7, -1))  # strong to weak; lambda = penalty x train images


@torch.inference_mode()
def predict(data: Split, seed: int = 0, device: torch.device | str = "cpu") -> Answer:
    """Predicted labels of the test part, the chosen penalty and its held-out accuracy.

    With centred X = U sqrt(s) V^T, a penalty costs one matrix product: the fitted values are
    U diag(s / (s + lambda)) U^T Y, and leaving image i out divides its residual by 1 - h_i, where h_i is its
    leverage [Hastie 2009, eq. 7.64]. U and s come from one eigendecomposition of the smaller of X^T X and
    X X^T, in fp64. Nothing is random, and `seed` has no effect, unless the train images have groups.
    """
    data = checked(data)
    pairs = holdouts(data.train_labels, seed, groups=data.train_groups)  # ValueError: nothing to hold out
    train, test = (torch.from_numpy(x).to(device).double() for x in standardise(data.train, data.test))
    labels = torch.from_numpy(data.train_labels).to(device)
    n = len(train)
    target = torch.nn.functional.one_hot(labels, data.classes).double()
    offset = target.mean(0)
    target = target - offset
    left, power = basis(train)
    projected = left.T @ target
    shrinks = [power / (power + penalty * n) for penalty in PENALTIES]
    leverages = (1 / n + left.square() @ torch.stack(shrinks, dim=1)).T
    scores = []
    for shrink, leverage in zip(shrinks, leverages) if data.train_groups is None else ():
        residual = (target - left @ (shrink[:, None] * projected)) / (1 - leverage).clamp(min=1e-9)[:, None]
        scores.append(float(((target - residual + offset).argmax(1) == labels).double().mean()))
    if data.train_groups is not None:
        scores = np.mean([_held_out(data, fit, held_out, device) for fit, held_out in pairs], 0).tolist()
    best = int(np.argmax(scores))  # ties: the strongest
    weight = train.T @ (left @ (projected / (power + PENALTIES[best] * n)[:, None]))
    fitted = (test @ weight + offset).cpu()
    settings = {"penalty": PENALTIES[best], "held_out_top1": round(scores[best], 4)}
    return Answer(fitted.argmax(1).numpy(), settings, fitted.float().numpy())


def _held_out(
    data: Split, fit: Int[np.ndarray, "f"], held_out: Int[np.ndarray, "h"], device: torch.device | str
) -> list[float]:
    """The accuracy on held-out train images of each penalty, fitted on the other ones."""
    part = standardise(data.train[fit], data.train[held_out])
    train, test = (torch.from_numpy(x).to(device).double() for x in part)
    labels = torch.from_numpy(data.train_labels).to(device)
    target = torch.nn.functional.one_hot(labels[fit], data.classes).double()
    offset = target.mean(0)
    left, power = basis(train)
    projected, queries = left.T @ (target - offset), test @ (train.T @ left)
    answers = [
        (queries @ (projected / (power + penalty * len(fit))[:, None]) + offset).argmax(1)
        for penalty in PENALTIES
    ]
    return [float((answer == labels[held_out]).double().mean()) for answer in answers]


def basis(x: Float[Tensor, "n d"]) -> tuple[Float[Tensor, "n r"], Float[Tensor, "r"]]:
    """U and s of x = U sqrt(s) V^T, without directions of (almost) no variance."""
    wide = x.shape[0] < x.shape[1]
    power, vectors = torch.linalg.eigh(x @ x.T if wide else x.T @ x)
    alive = power > power[-1] * 1e-12
    power, vectors = power[alive], vectors[:, alive]
    return (vectors if wide else (x @ vectors) / power.sqrt()), power
