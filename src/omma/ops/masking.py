"""Which tokens of an image are hidden, drawn from the image's own random numbers."""

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from omma.ops import random
from omma.protocols import Key


def random_keep(key: Key, stream: int, tokens: int, share: float) -> Int[Tensor, "b m"]:
    """Numbers of the tokens that stay visible when `share` of them is masked at random, in rising order.

    m = int(tokens * (1 - share)), at least 1 [He 2021, section 3].
    """
    kept = max(1, int(tokens * (1 - share)))
    order = random.permutations(key, stream, tokens)[:, :kept]
    return torch.from_numpy(np.sort(order, axis=1))
