"""What tensors an algorithm makes."""

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Sizes(TorchDispatchMode):
    """How many numbers the largest tensor that any operation makes has, and how often matrices multiply."""

    def __init__(self):
        super().__init__()
        self.largest, self.products, self.made = 0, 0, Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        made = [x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        self.largest = max([self.largest, *made])
        if all(returned.alias_info is None for returned in function._schema.returns):
            self.made.update(made)
        self.products += function in (torch.ops.aten.mm.default, torch.ops.aten.addmm_.default)
        return out
