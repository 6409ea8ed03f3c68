"""DALL-E's tokenizer; width and depth follow from the shapes."""

from omma.weights.published.families.common import NetworkSpec, Settings
from omma.weights.published.names import Names


def dalle(t: Names, settings: Settings) -> NetworkSpec:
    """At 112 px it gives as many codes as a 224 px image has patches of 16 px [Bao 2021, section 3.1]."""
    groups, depth, hidden = t.count("blocks"), t.count("blocks.0"), t.shape("conv1.weight")[0]
    if groups != 4:
        raise ValueError(f"{t.source}: DALL-E's encoder has 4 groups of blocks, this one {groups}")
    published = {"hidden": 256, "depth": 2}
    shape = {"hidden": hidden, "depth": depth}
    options = {name: value for name, value in shape.items() if value != published[name]}
    return NetworkSpec("dalle/8", options, int(settings.get("image_size", 112)))
