"""CaiT; the number of heads is the size of the talking-heads projection."""

from omma.weights.published.families import common
from omma.weights.published.families.common import NetworkSpec, Settings
from omma.weights.published.names import Names


def cait(t: Names, settings: Settings) -> NetworkSpec:
    """Convert to the parameters of omma.backbones.cait."""
    dim, patch = common.patch_of(t)
    common.shape_tokens(t)
    grid, prefix_rows = common.grid_of_positions(t, settings)
    if prefix_rows:
        raise ValueError(f"{t.source}: positions for a class token, which CaiT does not have")
    required = {
        "depth": t.count("blocks"),
        "dim": dim,
        "heads": t.matrix("blocks.0.attn.proj_l.weight")[0],
        "layer_scale": 1e-5,
        "class_layers": t.count("blocks_token_only"),
        "patch": patch,
    }
    name, options = common.closest_model(("cait",), "", required)
    return NetworkSpec(name, options, max(grid) * patch, grid)
