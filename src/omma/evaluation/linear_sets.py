"""Linear probe for several labels an image: a logistic regression for each class, all fitted at once."""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

from omma.evaluation.average_precision import mean_average_precision
from omma.evaluation.linear import PENALTIES
from omma.evaluation.split import Answer, holdouts, standardise

MOST = 200  # iterations


def predict(
    train: Float[np.ndarray, "n d"],
    sets: Int[np.ndarray, "n k"],
    strata: Int[np.ndarray, "n"],
    test: Float[np.ndarray, "m d"],
    seed: int = 0,
) -> Answer:
    """Probabilities of the test part, which do not sum to 1, and the penalty with its held-out mAP.

    sets: 1, the class applies; 0, it does not; -1, not known, which no loss counts. strata: one class an
    image, to hold out by. The penalty, one for all classes, is chosen on held-out train images.
    """
    paths = []
    pairs = holdouts(strata, seed)
    for fitted, held_out in pairs:
        x, x_held_out = standardise(train[fitted], train[held_out])
        paths.append(_path(x, sets[fitted], x_held_out, PENALTIES))
    found = [
        float(np.mean([mean_average_precision(p, sets[held]) for p, (_, held) in zip(each, pairs)]))
        for each in zip(*paths)
    ]
    best = int(np.argmax(found))  # ties: the strongest penalty
    x, x_test = standardise(train, test)
    (scores,) = _path(x, sets, x_test, PENALTIES[best : best + 1])
    settings = {"solver": "lbfgs", "penalty": PENALTIES[best], "held_out_mAP": round(found[best], 4)}
    return Answer(scores.argmax(1), settings, scores)


def _path(
    x: Float[np.ndarray, "n d"],
    sets: Int[np.ndarray, "n k"],
    query: Float[np.ndarray, "m d"],
    penalties: Sequence[float],
) -> Iterator[Float[np.ndarray, "m k"]]:
    """Probabilities of `query` under mean cross-entropy + penalty / 2 |w|^2; each fit starts the next."""
    features, targets = torch.from_numpy(x), torch.from_numpy(np.asarray(sets, np.float32))
    known = (targets >= 0).float()
    share = known / known.sum(0).clamp(min=1)  # each class's mean is over its known labels
    targets = targets.clamp(min=0)
    weight = torch.zeros(x.shape[1], targets.shape[1], requires_grad=True)
    bias = torch.zeros(targets.shape[1], requires_grad=True)

    def loss(penalty: float) -> torch.Tensor:
        weight.grad = bias.grad = None
        each = cross_entropy(features @ weight + bias, targets, weight=share, reduction="sum")
        value = each + penalty / 2 * weight.square().sum()
        value.backward()
        return value

    for penalty in penalties:
        optimizer = torch.optim.LBFGS(
            [weight, bias], max_iter=MOST, history_size=20, line_search_fn="strong_wolfe"
        )
        optimizer.step(partial(loss, penalty))
        with torch.no_grad():  # left before the yield: paths take turns
            found = (torch.from_numpy(query) @ weight + bias).sigmoid().numpy()
        yield found
