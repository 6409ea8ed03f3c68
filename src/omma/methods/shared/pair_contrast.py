"""NT-Xent between two views of each sample, and the options of methods that use it [Chen 2020]."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor, nn

from omma import backbones
from omma.backbones.layers.heads import projector
from omma.core import collectives, dist
from omma.core.checks import above_zero, range_within_one
from omma.core.protocols import Colour, Crop, Recipe, Schedule, StepOutput
from omma.core.recipe import added
from omma.losses import contrastive
from omma.methods.shared import crops
from omma.ops.batch_norm import BatchNorm


@dataclass(frozen=True, kw_only=True)
class Contrast(crops.Photometric):
    """SimCLR's defaults, for ImageNet."""

    temperature: float = 0.1
    hidden: int | None = 2048  # of the head; None: the encoder's width, as in the published code
    out: int = 128
    # of the head; 3 in the published code's second version [Chen 2020, arXiv 2006.10029]
    layers: int = added(2, before=2)
    # the head ends in a batch norm with a scale and no shift, as in the code
    last_norm: bool = added(False, before=False)
    head_std: float | None = None  # of the head's initial matrices; None: PyTorch's; .01 in the code
    # both directions' losses are added, as in the code, which matters under LARS; else their mean
    summed: bool = added(False, before=False)
    scale: tuple[float, float] = (0.08, 1.0)
    crop_size: int | None = None  # pixels of the views; None: the image size
    colour: float = 1.0  # strength of jitter; .5 suits small images
    blur: bool = True  # off under 64 px

    blur_as: Literal["pillow", "gaussian", "taps9", "zeros"] = added("zeros", before="gaussian")

    def __post_init__(self) -> None:
        super().__post_init__()
        above_zero(self, "temperature", "out", "layers")
        above_zero(self, *[name for name in ("hidden", "head_std") if getattr(self, name) is not None])
        range_within_one(self, "scale")


def crop(config: Contrast, image_size: int, count: int) -> Crop:
    """`count` crops with the same augmentation [Chen 2020, appendix A]."""
    c = config.colour
    colour = Colour(
        brightness=0.8 * c, contrast=0.8 * c, saturation=0.8 * c, hue=0.2 * c, jitter_p=0.8, grey_p=0.2,
        jitter_order=config.jitter_order, blur_p=0.5 if config.blur else 0.0, **crops.BLURS[config.blur_as],
    )  # fmt: skip
    return Crop(count=count, size=config.crop_size or image_size, scale=config.scale, colour=colour)


def paper(config: type[Contrast]) -> Recipe:
    """SimCLR's, with the head of its second version's code.

    The code excludes batch norms and biases from decay and from LARS's trust ratio; it has ResNets only.
    """
    head = config(hidden=None, layers=3, last_norm=True, head_std=0.01, summed=True)
    return Recipe(
        config=head, batch=4096, lr=0.3 * 4096 / 256, rate_by_batch="linear", lr_end=0.0, warmup_epochs=10,
        schedule=Schedule(ramp="open"), optimizer="lars", weight_decay=1e-6,
        decayed=("token", "position", "table"), clip=None,
    )  # fmt: skip


def small(config: type[Contrast], image_size: int, model: str) -> Recipe:
    """SimCLR's for 1,000 to 100,000 images on one machine: views are smaller than the image size."""
    tiny, plain = image_size < 64, backbones.family(model).plain
    options = config(
        temperature=0.1, hidden=512, scale=(0.2, 1.0), colour=0.25 if tiny else 0.5, blur=not tiny,
        crop_size=crops.smaller(image_size, plain), **crops.SMALL,
    )  # fmt: skip
    return Recipe(
        config=options, batch=128, lr=1e-3 if plain else 2e-3, lr_end=2e-5, warmup=0.05, weight_decay=0.05,
        clip=None, encoder={"pool": "mean"},
    )  # fmt: skip


def head(config: Contrast, dim: int) -> nn.Sequential:
    """The projector of features of width `dim`."""
    hidden = config.hidden or dim
    layers = projector([dim, *[hidden] * (config.layers - 1), config.out], last_norm=config.last_norm)
    if config.last_norm:
        layers[-1] = BatchNorm(config.out)
        layers[-1].register_parameter("bias", None)
    if config.head_std is not None:
        for layer in layers:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=config.head_std)
    return layers


def output(
    z: Float[Tensor, "vb d"], config: Contrast, views: int = 2, excluded: Bool[Tensor, "b n"] | None = None
) -> StepOutput:
    """Loss and metrics of projections, those of all first views before those of all second ones, and so on.

    excluded: as in `contrastive.ntxent`.
    """
    own = z.chunk(views)
    everyone = [collectives.gather(view) for view in own]
    offset = dist.rank() * len(own[0])
    loss = contrastive.ntxent(own, config.temperature, everyone, offset, excluded)
    metrics = {
        "alignment": contrastive.alignment(own[0], own[1]).detach(),
        "uniformity": contrastive.uniformity(own[0].detach()),
    }
    return StepOutput(2 * loss if config.summed else loss, metrics)


def stacked(views: Float[Tensor, "b v c s s"]) -> Float[Tensor, "vb c s s"]:
    """All first views, then all second ones, and so on."""
    return views.transpose(0, 1).flatten(0, 1)
