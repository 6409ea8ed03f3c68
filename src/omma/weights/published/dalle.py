"""DALL-E's tokenizer: from the names of its own code to omma's, and its output layer of codes."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from omma.core.protocols import NO_EXTRAS, Extras
from omma.weights.published.names import Names

BLOCK = re.compile(r"^blocks\.group_(\d+)\.block_(\d+)\.(?:res_path\.)?(\w+)\.([wb])$")
LAST = re.compile(r"(^|\.)blocks\.output\.conv\.([wb])$")
KINDS = {"w": "weight", "b": "bias"}


def from_dalle(t: Names) -> Mapping[str, Any]:
    """Rename to omma's names, in which groups and blocks are counted from 0."""
    for name in list(t.tensors):
        if m := BLOCK.match(name):
            t.move(name, f"blocks.{int(m[1]) - 1}.{int(m[2]) - 1}.{m[3]}.{KINDS[m[4]]}")
        elif name in ("blocks.input.w", "blocks.input.b"):
            t.move(name, f"conv1.{KINDS[name[-1]]}")
        elif m := LAST.match(name):
            t.move(name, f"codes.{KINDS[m[2]]}")
    return {}


def extras_of(tensors: Mapping[str, Tensor], dim: int) -> Extras:
    """The 1x1 convolution to the codes' logits as a linear layer; no extras if the file has none."""
    output = {KINDS[m[2]]: x for name, x in tensors.items() if (m := LAST.search(name))}
    if "weight" not in output or output["weight"].shape[1:] != (dim, 1, 1):
        return NO_EXTRAS
    codes = {f"codes.{name}": x.float().flatten(1) if x.ndim > 1 else x.float() for name, x in output.items()}
    return Extras(codes, {"codes": len(output["weight"])})
