"""ViT as Google publishes it: JAX arrays (.npz), inputs before outputs, heads as a separate dimension."""

from collections.abc import Mapping
from typing import Any

from omma.weights.published.names import Names

RULES = (
    (r"/", "."),
    (r"^cls$", "cls_token"),
    (r"^Transformer\.posembed_input\.pos_embedding$", "pos_embed"),
    (r"^embedding\.", "patch_embed.proj."),
    (r"^Transformer\.encoder_norm\.", "norm."),
    (r"^Transformer\.encoderblock_(\d+)\.", r"blocks.\1."),
    (r"\.LayerNorm_0\.", ".norm1."),
    (r"\.LayerNorm_2\.", ".norm2."),
    (r"\.MultiHeadDotProductAttention_1\.out\.", ".attn.proj."),
    (r"\.MultiHeadDotProductAttention_1\.(q)uery\.", r".attn.\1."),
    (r"\.MultiHeadDotProductAttention_1\.(k)ey\.", r".attn.\1."),
    (r"\.MultiHeadDotProductAttention_1\.(v)alue\.", r".attn.\1."),
    (r"\.MlpBlock_3\.Dense_0\.", ".mlp.fc1."),
    (r"\.MlpBlock_3\.Dense_1\.", ".mlp.fc2."),
    (r"\.(kernel|scale)$", ".weight"),
)


def from_jax(names: Names) -> Mapping[str, Any]:
    """Rename and transpose to torch's layout (outputs before inputs); returns the number of heads."""
    names.rename(RULES)
    heads = names.shape("blocks.0.attn.q.weight")[1]
    for name, x in list(names.tensors.items()):
        if name == "patch_embed.proj.weight" and x.ndim == 4:
            names.change(name, x.permute(3, 2, 0, 1), "transposed")  # rows, columns, in, out
        elif name.endswith((".q.weight", ".k.weight", ".v.weight")):
            names.change(name, x.flatten(1).T, "transposed")
        elif name.endswith((".q.bias", ".k.bias", ".v.bias")):
            names.change(name, x.flatten(), "transposed")
        elif name.endswith(".attn.proj.weight"):
            names.change(name, x.flatten(0, -2).T, "transposed")
        elif name.endswith((".fc1.weight", ".fc2.weight")):
            names.change(name, x.T, "transposed")
    return {"heads": heads}
