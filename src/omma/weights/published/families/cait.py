"""CaiT: heads are as many as the talking heads' mixes."""

from omma.weights.published.families import common
from omma.weights.published.families.common import Built, Said
from omma.weights.published.names import Names


def cait(t: Names, said: Said) -> Built:
    """Parameters of omma.backbones.cait."""
    dim, patch = common.patch_of(t)
    common.shape_tokens(t)
    grid, front = common.place_tokens(t, said)
    if front:
        raise ValueError(f"{t.source}: positions for a class token, which CaiT does not have")
    wanted = {
        "depth": t.count("blocks"),
        "dim": dim,
        "heads": t.matrix("blocks.0.attn.proj_l.weight")[0],
        "layer_scale": 1e-5,
        "class_layers": t.count("blocks_token_only"),
        "patch": patch,
    }
    name, options = common.named(("cait",), "", wanted)
    return Built(name, options, max(grid) * patch, grid)
