"""Tensors on their way from a file's names to timm's, and where each of them came from."""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

# Tensors that follow from others: never used, never missed.
DERIVED = re.compile(
    r"(relative_position_index|relative_coords_table|attn_mask|position_ids|freqs_(cos|sin)|rope_embed\.periods"
    r"|qkv\.bias_mask|attn\.k_bias)$"
)


class Names:
    """A file's tensors under changing names.

    origin: for each tensor, the names in the file that it was made of. how: "fused", "transposed", ... where
    more happened to it than a wrapper's prefix being cut off. source: the file, for messages.
    """

    def __init__(self, tensors: Mapping[str, Tensor], source: str, origin: Mapping[str, str]) -> None:
        self.tensors = dict(tensors)
        self.source = source
        self.origin: dict[str, tuple[str, ...]] = {name: (origin[name],) for name in tensors}
        self.how: dict[str, str] = {}

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def has(self, pattern: str) -> bool:
        """Does a name match the regular expression?"""
        return any(re.search(pattern, name) for name in self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Raises ValueError where the file lacks the tensor."""
        if name not in self.tensors:
            raise ValueError(f"{self.source} lacks {name}, which a network of its kind has; is it whole?")
        return tuple(self.tensors[name].shape)

    def matrix(self, name: str) -> tuple[int, int]:
        """Its rows and columns; ValueError where it is no matrix."""
        shape = self.shape(name)
        if len(shape) != 2:
            raise ValueError(f"{self.source}: {name} has shape {list(shape)}, a matrix is expected")
        return shape[0], shape[1]

    def count(self, part: str) -> int:
        """How many numbered parts `part.0`, `part.1`, ... there are; ValueError where one is missing."""
        found = {int(m[1]) for name in self.tensors if (m := re.match(rf"{re.escape(part)}\.(\d+)\.", name))}
        count = len(found)
        if count != max(found, default=-1) + 1:
            lacking = next(i for i in range(count + 1) if i not in found)
            raise ValueError(f"{self.source} lacks {part}.{lacking}; is it whole?")
        return count

    def replace(self, old: Sequence[str], new: str, tensor: Tensor, how: str) -> None:
        """`tensor`, made of those called `old`, takes their place."""
        origin = tuple(raw for name in old for raw in self.origin.pop(name))
        before = [self.how.pop(name) for name in old if name in self.how]
        for name in old:
            del self.tensors[name]
        if new in self.tensors:
            raise ValueError(f"{self.source} holds {new} twice, once as {origin[0]}; give the encoder alone")
        self.tensors[new], self.origin[new] = tensor, origin
        self.how[new] = before[0] if how == "renamed" and before else how

    def change(self, name: str, tensor: Tensor, how: str) -> None:
        """Another tensor of the same name."""
        self.tensors[name], self.how[name] = tensor, how

    def move(self, old: str, new: str) -> None:
        """Another name, and no more."""
        self.replace([old], new, self.tensors[old], "renamed")

    def split(self, old: str, parts: Mapping[str, Tensor]) -> None:
        """Several tensors in its place."""
        origin = self.origin.pop(old)
        self.tensors.pop(old)
        self.how.pop(old, None)
        for name, tensor in parts.items():
            self.tensors[name], self.origin[name], self.how[name] = tensor, origin, "split"

    def rename(self, rules: Sequence[tuple[str, str]]) -> None:
        """Regular expressions and what to put for them, one after the other."""
        for name in list(self.tensors):
            new = name
            for pattern, by in rules:
                new = re.sub(pattern, by, new)
            if new != name:
                self.move(name, new)

    def fuse(self, old: Sequence[str], new: str) -> None:
        """One above the other, as the parts of one product."""
        parts = [self.tensors[name] for name in old]
        if len({p.shape[1:] for p in parts}) > 1 or parts[0].ndim == 0:
            shapes = ", ".join(f"{name} {list(p.shape)}" for name, p in zip(old, parts, strict=True))
            raise ValueError(f"{self.source} is damaged: shapes that do not go together ({shapes})")
        self.replace(old, new, torch.cat(parts), "fused")
