"""How unsure a classifier is of an image, from its probabilities: margin and entropy [Settles 2009]."""

import numpy as np
from jaxtyping import Float


def margin(probabilities: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n"]:
    """1 - (first - second probability): 1 where two classes are equally likely, 0 where one is sure.

    With one class alone, of which p is the probability: 1 - |2 p - 1|.
    """
    if probabilities.shape[1] == 1:
        probabilities = np.concatenate([probabilities, 1 - probabilities], axis=1)
    two = -np.partition(-probabilities, 1, axis=1)[:, :2]
    return 1 - (two[:, 0] - two[:, 1])


def entropy(probabilities: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n"]:
    """Entropy in nats: 0 where one class is sure, log k for uniform ones."""
    p = np.asarray(probabilities, np.float64)
    return -(p * np.log(np.where(p > 0, p, 1))).sum(1)
