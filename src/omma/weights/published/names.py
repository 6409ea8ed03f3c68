"""A file's tensors while they are renamed to timm's names, with the origin of each."""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

# Tensors that can be computed from others: neither used nor required.
DERIVED = re.compile(
    r"(relative_position_index|relative_coords_table|attn_mask|position_ids|freqs_(cos|sin)|rope_embed\.periods"
    r"|qkv\.bias_mask|attn\.k_bias)$"
)


class Names:
    """A file's tensors while they are renamed and converted.

    origin: for each tensor, the names in the file that it was made from. conversions: "fused", "transposed",
    ... for those that were changed beyond removing a prefix. source: the file, for messages.
    """

    def __init__(self, tensors: Mapping[str, Tensor], source: str, origin: Mapping[str, str]) -> None:
        self.tensors = dict(tensors)
        self.source = source
        self.origin: dict[str, tuple[str, ...]] = {name: (origin[name],) for name in tensors}
        self.conversions: dict[str, str] = {}

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def has(self, pattern: str) -> bool:
        """Does any name match the regular expression?"""
        return any(re.search(pattern, name) for name in self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape. Raises ValueError if the file lacks the tensor."""
        if name not in self.tensors:
            raise ValueError(f"{self.source} lacks {name}, which a network of its kind has; is it complete?")
        return tuple(self.tensors[name].shape)

    def matrix(self, name: str) -> tuple[int, int]:
        """The tensor's rows and columns. Raises ValueError if it is not a matrix."""
        shape = self.shape(name)
        if len(shape) != 2:
            raise ValueError(f"{self.source}: {name} has shape {list(shape)}, a matrix is expected")
        return shape[0], shape[1]

    def count(self, part: str) -> int:
        """The number of submodules `part.0`, `part.1`, ... Raises ValueError if one is missing."""
        numbers = {
            int(m[1]) for name in self.tensors if (m := re.match(rf"{re.escape(part)}\.(\d+)\.", name))
        }
        count = len(numbers)
        if count != max(numbers, default=-1) + 1:
            missing = next(i for i in range(count + 1) if i not in numbers)
            raise ValueError(f"{self.source} lacks {part}.{missing}; is it complete?")
        return count

    def replace(self, old: Sequence[str], new: str, tensor: Tensor, conversion: str) -> None:
        """Replace the tensors called `old` by `tensor`, which was made from them."""
        origin = tuple(raw for name in old for raw in self.origin.pop(name))
        earlier = [self.conversions.pop(name) for name in old if name in self.conversions]
        for name in old:
            del self.tensors[name]
        if new in self.tensors:
            raise ValueError(f"{self.source} holds {new} twice, once as {origin[0]}; give the encoder alone")
        self.tensors[new], self.origin[new] = tensor, origin
        self.conversions[new] = earlier[0] if conversion == "renamed" and earlier else conversion

    def change(self, name: str, tensor: Tensor, conversion: str) -> None:
        """Replace the tensor and keep its name."""
        self.tensors[name], self.conversions[name] = tensor, conversion

    def move(self, old: str, new: str) -> None:
        """Rename a tensor."""
        self.replace([old], new, self.tensors[old], "renamed")

    def split(self, old: str, tensors: Mapping[str, Tensor]) -> None:
        """Replace one tensor by several."""
        origin = self.origin.pop(old)
        self.tensors.pop(old)
        self.conversions.pop(old, None)
        for name, tensor in tensors.items():
            self.tensors[name], self.origin[name], self.conversions[name] = tensor, origin, "split"

    def rename(self, rules: Sequence[tuple[str, str]]) -> None:
        """Apply regular expressions and their replacements, in order, to every name."""
        for name in list(self.tensors):
            new = name
            for pattern, replacement in rules:
                new = re.sub(pattern, replacement, new)
            if new != name:
                self.move(name, new)

    def fuse(self, old: Sequence[str], new: str) -> None:
        """Concatenate along the first dimension, so that one matrix product computes all of them."""
        tensors = [self.tensors[name] for name in old]
        if len({p.shape[1:] for p in tensors}) > 1 or tensors[0].ndim == 0:
            shapes = ", ".join(f"{name} {list(p.shape)}" for name, p in zip(old, tensors, strict=True))
            raise ValueError(f"{self.source} is damaged: shapes that do not match ({shapes})")
        self.replace(old, new, torch.cat(tensors), "fused")
