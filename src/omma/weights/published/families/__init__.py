"""One function per family of networks: final conversion of the tensors, and the spec that builds the network.

To add a family, add a file with one function and a line to `family_reader`.
"""

from collections.abc import Callable

from omma.weights.published.families.cait import cait
from omma.weights.published.families.common import TOKENS, NetworkSpec, Settings
from omma.weights.published.families.dalle import dalle
from omma.weights.published.families.eva import eva
from omma.weights.published.families.resnet import resnet
from omma.weights.published.families.swin import swin
from omma.weights.published.families.vit import vit
from omma.weights.published.names import Names


def family_reader(t: Names) -> Callable[[Names, Settings], NetworkSpec]:
    """The function of the family, identified by parameters that only one family has."""
    if t.has(r"^blocks\.\d+\.\d+\.conv_4\.weight$"):
        return dalle
    if "patch_embed.proj.weight" not in t:
        return resnet
    if t.has(r"^layers\.\d+\.blocks\."):
        return swin
    if t.has(r"^blocks_token_only\."):
        return cait
    keys_without_bias = "blocks.0.attn.q.bias" in t and "blocks.0.attn.k.bias" not in t
    no_positions = "pos_embed" not in t and "cls_token" in t and t.has(r"^blocks\.0\.(gamma_1|ls1\.gamma)$")
    if keys_without_bias or no_positions or t.has(r"relative_position_bias_table$|\.attn\.q_bias$"):
        return eva
    return vit


__all__ = ("TOKENS", "NetworkSpec", "Settings", "family_reader")
