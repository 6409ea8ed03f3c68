"""ResNet, with the same names in torchvision and timm."""

from omma.weights.published.families.common import NetworkSpec, Settings
from omma.weights.published.names import Names

# By blocks per stage, and whether they are bottlenecks [He 2015, arXiv 1512.03385, table 1].
MODELS: dict[tuple[tuple[int, ...], bool], str] = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}


def resnet(t: Names, settings: Settings) -> NetworkSpec:
    """The timm model of this shape, which backbones.build makes."""
    depths = tuple(t.count(f"layer{i}") for i in range(1, 5))
    model = MODELS.get((depths, "layer1.0.conv3.weight" in t))
    if model is None or t.shape("conv1.weight")[2:] != (7, 7):
        raise ValueError(f"{t.source}: a ResNet with {depths} blocks is none of {', '.join(MODELS.values())}")
    return NetworkSpec(f"timm:{model}", {}, int(settings.get("image_size", 224)))
