"""Convolutional and other networks of timm and torchvision by name: `timm:resnet50`, `torchvision:alexnet`.

Parameters keep their library's names. Networks of timm load into timm without omma, strictly; those whose
pooled feature has another width than their map (VGG, MobileNetV3) are kept without their head. Networks of
torchvision are kept up to the pooling.
"""

import difflib
import logging
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from omma.backbones.layers.foreign import (
    Followed,
    Trunk,
    adopt,
    arrange,
    drop_nothing,
    probe,
    shapes,
    share_statistics,
    stages,
    stride,
    without_values,
)
from omma.backbones.layers.nonlocal_block import NonLocal
from omma.backbones.layers.transformer import chosen_layers
from omma.core.errors import need
from omma.core.protocols import Backbone, Features, NoAttention

log = logging.getLogger(__name__)

NAMES = (
    "timm:resnet18",
    "timm:resnet50",
    "timm:resnetv2_101x3_bit",  # BiT R-101x3
    "timm:resnetv2_152x4_bit",
    "timm:vgg16",
    "timm:convnext_tiny",
    "torchvision:alexnet",  # as this and the next, which timm lacks
    "torchvision:googlenet",
    "torchvision:vgg16",
)
POOLING = ("avgpool", "classifier", "fc")  # where the feature map of torchvision's networks ends
HEADS = ("head", "pre_logits", "conv_head", "norm_head", "in_conv", "pre_classifier")  # of timm's


def names() -> list[str]:
    """Well-known ones; every other network of the two libraries has a name too."""
    return list(NAMES)


def parse(name: str) -> dict[str, Any] | None:
    """No arguments, for the name is the model; None for another family's.

    Raises ValueError for a network that the library does not have, and where the library is not installed.
    """
    source, colon, model = name.partition(":")
    if not colon or source not in ("timm", "torchvision"):
        return None
    if source == "timm":
        timm = need("timm", "timm")
        known = timm.list_models() if "." not in model else timm.list_pretrained()  # "resnet50.a1_in1k"
    else:
        models = need("torchvision.models", "timm")
        known = models.list_models(module=models)
    if model not in known:
        close = difflib.get_close_matches(model, known, n=3) or known[:3]
        said = ", ".join(f"{source}:{match}" for match in close)
        raise ValueError(f"model {name!r}: {source} has no {model!r}; did you mean {said}?")
    return {}


class Encoder(Backbone):
    """A network of timm or torchvision: its last feature map, and its own pooled feature.

    The tokens that `tokenize` gives are the last feature map; `encode` pools. `pooled` is what timm's own
    head gives its classifier (pooling and norms) where that is as wide as the map, and the map's mean
    elsewhere. A transformer's tokens before the patches stay among the tokens and are not among `patches`.

    image_size: made for, where the network has positions; others read any size. non_local: stages that a
    non-local block [Wang 2018, arXiv 1711.07971] is put after; non_local_pool: its keys are max-pooled 2x2.
    """

    drops_tokens = False
    plain = False

    def __init__(
        self,
        name: str,
        *,
        image_size: int,
        channels: int = 3,
        non_local: int | Iterable[int] = (),
        non_local_pool: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.name, self.image_size, self.channels = name, image_size, channels
        self._after = tuple(sorted({non_local} if isinstance(non_local, int) else set(non_local)))
        self.non_local_pool = non_local_pool
        source, _, model = name.partition(":")
        if source == "timm":
            network = _timm(model, image_size, channels, drop_path)
            self.prefix = getattr(network, "num_prefix_tokens", 0)
            self.pool = "token" if getattr(network, "global_pool", None) == "token" else "mean"
        else:
            network = _torchvision(model, channels, drop_path)
        first = (getattr(network, "pretrained_cfg", None) or {}).get("first_conv")
        first = first or next((n for n, m in network.named_modules() if isinstance(m, nn.Conv2d)), ())
        self.first_layers = tuple(f"{n}.weight" for n in ((first,) if isinstance(first, str) else first))
        share_statistics(network)
        twin = without_values(network)
        x = probe(twin, name, channels, (image_size, image_size))
        self._layout = "sequence" if x.ndim == 3 else str(getattr(network, "output_fmt", "NCHW"))
        self.dim = x.shape[1] if self._layout == "NCHW" else x.shape[-1]
        self._pools = getattr(network, "head_hidden_size", None) == self.dim
        self.patch = stride(twin, name, channels)
        if self._layout == "sequence" and x.shape[1] - self.prefix < (image_size // (2 * self.patch)) ** 2:
            raise ValueError(f"{name} gives no features of patches, which are needed; choose another network")
        if not self._pools:
            for child in HEADS:
                if hasattr(network, child):
                    setattr(network, child, nn.Identity())
        if self._after:
            self._insert(network, twin)
        # in tuples, which do not register them: this module holds the network's children itself
        self._network: tuple[Any] = (network,)
        self._twin: tuple[Any] = (twin,)
        self._measured: dict[tuple[int, int], tuple[tuple[int, int], tuple[int, int]]] = {}
        adopt(self, network)

    def _insert(self, network: Any, twin: Any) -> None:
        """Put a non-local block after each asked stage."""
        known = stages(network)
        if unknown := set(self._after) - known.keys():
            said = ", ".join(f"{number} ({stage})" for number, stage in known.items()) or "none"
            raise ValueError(f"non_local={min(unknown)}: the stages of {self.name} are: {said}")
        size = (self.image_size, self.image_size)
        asked = [known[number] for number in self._after]
        blocks = nn.ModuleDict()
        for number, stage, shape in zip(
            self._after, asked, shapes(twin, self.name, self.channels, size, asked), strict=True
        ):
            if len(shape) != 4 or self._layout != "NCHW":
                raise ValueError(f"non_local={number}: {self.name} has no feature map [b, c, h, w] there")
            block = blocks[str(number)] = NonLocal(shape[1], self.non_local_pool)
            parent, _, leaf = stage.rpartition(".")
            setattr(network.get_submodule(parent), leaf, Followed(network.get_submodule(stage), block))
        network.add_module("non_local", blocks)

    def drop_nothing(self) -> None:
        drop_nothing(self)

    def train(self, mode: bool = True) -> "Encoder":
        super().train(mode)
        self._network[0].training = mode
        return self

    def _measure(self, size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """What images of this size are padded to, and the grid of their features."""
        if size not in self._measured:
            height, width = (-(-side // self.patch) * self.patch for side in size)
            read = size
            try:
                x = probe(self._twin[0], self.name, self.channels, size)
            except ValueError as error:
                read = (height, width)
                if size == read:
                    raise
                try:
                    x = probe(self._twin[0], self.name, self.channels, read)
                except ValueError:
                    raise error from None
            self._measured[size] = read, self._flatten(x, read)[1]
        return self._measured[size]

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Each network rounds in its own way, so this is measured, once a size and without computing.

        Images are padded at the right and bottom where the network takes multiples of its stride only.
        """
        return self._measure((height, width))[1]

    def _flatten(self, x: Tensor, size: tuple[int, int]) -> tuple[Float[Tensor, "b n d"], tuple[int, int]]:
        """The tokens of a feature map, and their grid."""
        if self._layout == "sequence":
            return x, arrange(self._network[0], self.name, x.shape[1] - self.prefix, size)
        x = x.permute(0, 2, 3, 1) if self._layout == "NCHW" else x
        return x.flatten(1, 2), (x.shape[1], x.shape[2])

    def _tokens(self, images: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b n d"], tuple[int, int]]:
        height, width = size = images.shape[-2:]
        if height % self.patch or width % self.patch:
            size = self._measure((height, width))[0]
            images = nn.functional.pad(images, (0, size[1] - width, 0, size[0] - height))
        weight = next(p for p in self.parameters() if p.ndim > 1)  # norms may be kept in fp32
        images = images.to(weight.dtype, memory_format=torch.channels_last)  # up to 3 times as fast on CPUs
        try:
            x = self._network[0].forward_features(images)
        except AssertionError as error:  # how timm refuses a size
            raise ValueError(f"{self.name} cannot read {height}x{width} px: {error}") from error
        return self._flatten(x, (size[0], size[1]))

    def tokenize(
        self, images: Float[Tensor, "b c h w"], keep: Int[Tensor, "b m"] | None = None
    ) -> Float[Tensor, "b n d"]:
        """The last feature map, row by row; of a transformer, all its tokens."""
        assert keep is None, f"{self.name} cannot drop tokens"
        return self._tokens(images)[0]

    def encode(
        self, tokens: Float[Tensor, "b n d"], grid: tuple[int, int], keep: Int[Tensor, "b n"] | None = None
    ) -> Features:
        assert keep is None, f"{self.name} cannot drop tokens"
        front = tokens[:, : self.prefix] if self.prefix else None
        patches = tokens[:, self.prefix :]
        if not self._pools:
            return Features(patches.mean(1), patches, grid, front)
        x = tokens if self._layout == "sequence" else tokens.unflatten(1, grid)
        x = x.permute(0, 3, 1, 2) if self._layout == "NCHW" else x
        return Features(self._network[0].forward_head(x, pre_logits=True), patches, grid, front)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Features:
        return self.encode(*self._tokens(images))

    def _maps(
        self, images: Float[Tensor, "b c h w"], layers: Sequence[int]
    ) -> list[tuple[Float[Tensor, "b 1 n m"], tuple[int, int]]]:
        """The asked blocks' weights, and the grid of the places attended to."""
        if not self._after:
            raise NoAttention(f"{self.name} shows no attention; its option `non_local` adds blocks that do")
        blocks: list[Any] = list(self._network[0].non_local.values())
        found: dict[NonLocal, tuple[Tensor, tuple[int, int]]] = {}

        def look(block: NonLocal, inputs: tuple[Tensor]) -> None:
            found[block] = block.weights(inputs[0]), block.keys(*inputs[0].shape[2:])

        asked = [
            blocks[i] for i in chosen_layers(layers, len(blocks), f"{self.name}, counting non-local blocks,")
        ]
        handles = [block.register_forward_pre_hook(look) for block in dict.fromkeys(asked)]
        training = self.training
        try:
            self.eval()._tokens(images)  # looking leaves the batch norms' statistics alone
        finally:
            self.train(training)
            for handle in handles:
                handle.remove()
        return [found[block] for block in asked]

    @torch.no_grad()
    def attention(
        self, images: Float[Tensor, "b c h w"], layers: Sequence[int] = (-1,)
    ) -> list[Float[Tensor, "b 1 n m"]]:
        """The non-local blocks' softmax weights, over the places of the stage that each follows."""
        return [weights for weights, _ in self._maps(images, layers)]

    @torch.no_grad()
    def pooled_attention(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 n"]:
        """What the last non-local block attends to, mean over all places, averaged over each patch."""
        ((weights, keys),) = self._maps(images, (-1,))
        seen = weights.mean(2).unflatten(2, keys)
        seen = nn.functional.adaptive_avg_pool2d(seen, self.grid(*images.shape[-2:])).flatten(2)
        return seen / seen.sum(-1, keepdim=True)


# ---------------------------------------------------------------- the two libraries
def _timm(model: str, image_size: int, channels: int, drop_path: float) -> Any:
    """One of timm's networks without classifier. Options that it does not have are left out."""
    timm = need("timm", "timm")
    wishes = {
        "img_size": image_size,
        "dynamic_img_size": True,  # positions are interpolated ...
        "dynamic_img_pad": True,  # ... and images padded
        "drop_path_rate": drop_path,
    }
    while True:
        try:
            return timm.create_model(
                model.partition(".")[0], pretrained=False, num_classes=0, in_chans=channels, **wishes
            )
        except TypeError as error:
            refused = [wish for wish in wishes if f"'{wish}'" in str(error)]
            if not refused:
                raise
            if "drop_path_rate" in refused and drop_path:
                log.warning("timm:%s has no stochastic depth: drop_path=%g is left out", model, drop_path)
            wishes = {wish: value for wish, value in wishes.items() if wish not in refused}
        except AssertionError as error:
            raise ValueError(f"timm:{model} cannot be made for {image_size} px: {error}") from error


def _torchvision(model: str, channels: int, drop_path: float) -> Trunk:
    """One of torchvision's networks up to the pooling, with a new first convolution for other channels."""
    models = need("torchvision.models", "timm")
    inception = model in ("googlenet", "inception_v3")
    network = models.get_model(
        model, weights=None, **({"aux_logits": False, "init_weights": True} if inception else {})
    )
    children = dict(network.named_children())
    ends = [i for i, name in enumerate(children) if name in POOLING]
    if not ends or any(isinstance(child, nn.ModuleList) for child in children.values()):
        raise ValueError(f"torchvision:{model} is no chain of layers up to a pooling; use timm's network")
    trunk = Trunk(dict(list(children.items())[: ends[0]]))
    if model.startswith("densenet"):  # its forward has an activation that is no module
        trunk.order += ("relu",)
        trunk.add_module("relu", nn.ReLU(inplace=True))
    first, conv = next((n, m) for n, m in trunk.named_modules() if isinstance(m, nn.Conv2d))
    if conv.in_channels != channels:
        shape: Any = (conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation)
        parent, _, leaf = first.rpartition(".")
        new = nn.Conv2d(channels, *shape, bias=conv.bias is not None)
        setattr(trunk.get_submodule(parent), leaf, new)
    depths: list[Any] = [m for m in trunk.modules() if type(m).__name__ == "StochasticDepth"]
    for i, depth in enumerate(depths):
        depth.p = drop_path * i / max(len(depths) - 1, 1)
    if drop_path and not depths:
        log.warning("torchvision:%s has no stochastic depth: drop_path=%g is left out", model, drop_path)
    return trunk
