"""DALL-E's tokenizer: its width and blocks, from the shapes."""

from omma.weights.published.families.common import Built, Said
from omma.weights.published.names import Names


def dalle(t: Names, said: Said) -> Built:
    """112 pixels along a side, which give as many codes as 224 give patches of 16 [Bao 2021, section 3.1]."""
    groups, depth, hidden = t.count("blocks"), t.count("blocks.0"), t.shape("conv1.weight")[0]
    if groups != 4:
        raise ValueError(f"{t.source}: DALL-E's encoder has 4 groups of blocks, this one {groups}")
    own = {"hidden": 256, "depth": 2}
    found = {"hidden": hidden, "depth": depth}
    options = {name: value for name, value in found.items() if value != own[name]}
    return Built("dalle/8", options, int(said.get("image_size", 112)))
