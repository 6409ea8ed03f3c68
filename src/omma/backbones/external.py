"""Convolutional and other networks of timm and torchvision by name: `timm:resnet50`, `torchvision:alexnet`.

Parameters keep their library's names. Networks of timm load strictly into timm without omma; those whose
pooled feature has another width than their map (VGG, MobileNetV3) are used without their head; those that end
in no single map (CrossViT, CoaT, PiT) give one vector an image. Networks of torchvision are used up to the
pooling.
"""

import difflib
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from omma.backbones.layers.foreign import (
    Followed,
    NoMap,
    Trunk,
    adopt,
    arrange,
    checked_arguments,
    drop_nothing,
    probe,
    shapes,
    share_statistics,
    stages,
    stride,
    vector,
    without_values,
)
from omma.backbones.layers.nonlocal_block import NonLocal
from omma.backbones.layers.transformer import chosen_layers
from omma.core.errors import line, need
from omma.core.protocols import Backbone, Features, NoAttention

log = logging.getLogger(__name__)

NAMES = (
    "timm:resnet18",
    "timm:resnet50",
    "timm:resnetv2_101x3_bit",  # BiT R-101x3
    "timm:resnetv2_152x4_bit",
    "timm:vgg16",
    "timm:convnext_tiny",
    "torchvision:alexnet",  # timm lacks this and the next
    "torchvision:googlenet",
    "torchvision:vgg16",
)
POOLING = ("avgpool", "classifier", "fc")  # modules after the feature map in torchvision's networks
HEADS = ("head", "pre_logits", "conv_head", "norm_head", "in_conv", "pre_classifier")  # in timm's networks


def names() -> list[str]:
    """Well-known ones; every other network of the two libraries can be named too."""
    return list(NAMES)


def parse(name: str) -> dict[str, Any] | None:
    """No arguments, since the name determines the model; None for another family's.

    Raises ValueError for a network that the library does not have, and if the library is not installed.
    """
    source, colon, model = name.partition(":")
    if not colon or source not in ("timm", "torchvision"):
        return None
    if source == "timm":
        timm = need("timm", "timm")
        available = timm.list_models() if "." not in model else timm.list_pretrained()  # "resnet50.a1_in1k"
    else:
        models = need("torchvision.models", "timm")
        available = models.list_models(module=models)
    if model not in available:
        close = difflib.get_close_matches(model, available, n=3) or available[:3]
        suggestions = ", ".join(f"{source}:{match}" for match in close)
        raise ValueError(f"model {name!r}: {source} has no {model!r}; did you mean {suggestions}?")
    return {}


class Encoder(Backbone):
    """A network of timm or torchvision: its last feature map, and its own pooled feature.

    `tokenize` returns the last feature map; `encode` pools. `pooled` is the input of timm's classifier (after
    pooling and norms) if that is as wide as the map, else the map's mean. A transformer's tokens before the
    patches stay among the tokens and are not among `patches`.

    image_size: that positions are made for, if the network has any; others read any size. non_local: stages
    to put a non-local block after [Wang 2018, arXiv 1711.07971]; non_local_pool: max-pool its keys 2x2.
    arguments: a JSON object of further arguments of timm.create_model.
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
        arguments: str = "",
    ) -> None:
        super().__init__()
        self.name, self.image_size, self.channels = name, image_size, channels
        self._after = tuple(sorted({non_local} if isinstance(non_local, int) else set(non_local)))
        self.non_local_pool = non_local_pool
        source, _, model = name.partition(":")
        if source == "timm":
            network = _timm(model, image_size, channels, drop_path, checked_arguments(arguments))
            self.prefix = getattr(network, "num_prefix_tokens", 0)
            self.pool = "token" if getattr(network, "global_pool", None) == "token" else "mean"
        else:
            if arguments:
                raise ValueError(f"arguments={arguments} of {name}: only timm's networks take further ones")
            network = _torchvision(model, channels, drop_path)
        first = (getattr(network, "pretrained_cfg", None) or {}).get("first_conv")
        first = first or next((n for n, m in network.named_modules() if isinstance(m, nn.Conv2d)), ())
        self.first_layers = tuple(f"{n}.weight" for n in ((first,) if isinstance(first, str) else first))
        share_statistics(network)
        twin = without_values(network)
        self._layout, self.dim, self.patch = self._look(network, twin)
        self._pools = self._layout != "vector" and getattr(network, "head_hidden_size", None) == self.dim
        if not self._pools and self._layout != "vector":
            for child in HEADS:
                if hasattr(network, child):
                    setattr(network, child, nn.Identity())
        if self._after:
            self._insert(network, twin)
        # in tuples, which do not register them: the network's children are registered with this module
        self._network: tuple[Any] = (network,)
        self._twin: tuple[Any] = (twin,)
        self._measured: dict[tuple[int, int], tuple[tuple[int, int], tuple[int, int]]] = {}
        adopt(self, network)

    def _look(self, network: Any, twin: Any) -> tuple[str, int, int]:
        """The layout of the network's features, their width, and the pixels of each along a side."""
        size = (self.image_size, self.image_size)
        try:
            x = probe(twin, self.name, self.channels, size)
            layout = "sequence" if x.ndim == 3 else str(getattr(network, "output_fmt", "NCHW"))
            patch = stride(twin, self.name, self.channels)
            if layout == "sequence":
                cells = x.shape[1] - self.prefix
                if cells < (self.image_size // (2 * patch)) ** 2:
                    raise NoMap("features of the whole image only")
                arrange(network, self.name, cells, size)
            return layout, x.shape[1] if layout == "NCHW" else x.shape[-1], patch
        except NoMap:
            pass
        self.prefix = 0
        return "vector", vector(twin, self.name, self.channels, size).shape[1], self.image_size

    def _insert(self, network: Any, twin: Any) -> None:
        """Put a non-local block after each requested stage."""
        available = stages(network)
        if unknown := set(self._after) - available.keys():
            listed = ", ".join(f"{number} ({stage})" for number, stage in available.items()) or "none"
            raise ValueError(f"non_local={min(unknown)}: the stages of {self.name} are: {listed}")
        requested = [available[number] for number in self._after]
        outputs = shapes(twin, self.name, self.channels, (self.image_size, self.image_size), requested)
        blocks = nn.ModuleDict()
        for number, stage, shape in zip(self._after, requested, outputs, strict=True):
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
        self._network[0].training = self.training
        return self

    def _measure(self, size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """The size that images of `size` are padded to, and the grid of their features."""
        if self._layout == "vector":
            return size, (1, 1)
        if size not in self._measured:
            height, width = (-(-side // self.patch) * self.patch for side in size)
            padded = size
            try:
                x = probe(self._twin[0], self.name, self.channels, size)
            except ValueError as error:
                padded = (height, width)
                if size == padded:
                    raise
                try:
                    x = probe(self._twin[0], self.name, self.channels, padded)
                except ValueError:
                    raise error from None
            self._measured[size] = padded, self._flatten(x, padded)[1]
        return self._measured[size]

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Measured on the meta device, once per size, since networks round in different ways; 1 x 1 where the
        network gives one vector an image.

        Images are padded at the right and bottom if the network reads only multiples of its stride.
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
        if self._layout != "vector" and (height % self.patch or width % self.patch):
            size = self._measure((height, width))[0]
            images = nn.functional.pad(images, (0, size[1] - width, 0, size[0] - height))
        weight = next(p for p in self.parameters() if p.ndim > 1)  # norms may be in fp32
        form = torch.preserve_format if torch.compiler.is_exporting() else torch.channels_last
        images = images.to(weight.dtype, memory_format=form)  # channels last: up to 3 times as fast on CPUs
        try:
            if self._layout == "vector":
                return self._network[0](images)[:, None], (1, 1)
            x = self._network[0].forward_features(images)
        except AssertionError as error:  # timm's way to reject a size
            raise ValueError(f"{self.name} cannot read {height}x{width} px: {line(error)}") from error
        return self._flatten(x, (size[0], size[1]))

    def tokenize(
        self, images: Float[Tensor, "b c h w"], keep: Int[Tensor, "b m"] | None = None
    ) -> Float[Tensor, "b n d"]:
        """The last feature map, row by row; all tokens of a transformer."""
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
        """The weights of the requested non-local blocks, and the grid of their keys."""
        if not self._after:
            raise NoAttention(f"{self.name} has no attention; its option `non_local` adds blocks that do")
        blocks: list[Any] = list(self._network[0].non_local.values())
        maps: dict[NonLocal, tuple[Tensor, tuple[int, int]]] = {}

        def record(block: NonLocal, inputs: tuple[Tensor]) -> None:
            maps[block] = block.weights(inputs[0]), block.keys(*inputs[0].shape[2:])

        numbers = chosen_layers(layers, len(blocks), f"{self.name}, counting non-local blocks,")
        handles = [blocks[i].register_forward_pre_hook(record) for i in dict.fromkeys(numbers)]
        training = self.training
        try:
            self.eval()._tokens(images)  # does not change the batch norms' statistics
        finally:
            self.train(training)
            for handle in handles:
                handle.remove()
        return [maps[blocks[i]] for i in numbers]

    @torch.no_grad()
    def attention(
        self, images: Float[Tensor, "b c h w"], layers: Sequence[int] = (-1,)
    ) -> list[Float[Tensor, "b 1 n m"]]:
        """The non-local blocks' softmax weights, over the feature map of the stage that each follows."""
        return [weights for weights, _ in self._maps(images, layers)]

    @torch.no_grad()
    def pooled_attention(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 n"]:
        """Weights of the last non-local block, mean over the queries, averaged over each patch."""
        ((weights, keys),) = self._maps(images, (-1,))
        mean = weights.mean(2).unflatten(2, keys)
        mean = nn.functional.adaptive_avg_pool2d(mean, self.grid(*images.shape[-2:])).flatten(2)
        return mean / mean.sum(-1, keepdim=True)


# ---------------------------------------------------------------- the two libraries
def _timm(model: str, image_size: int, channels: int, drop_path: float, further: Mapping[str, Any]) -> Any:
    """One of timm's networks without classifier; options that it lacks are not passed."""
    timm = need("timm", "timm")
    options = {
        "img_size": image_size,
        "dynamic_img_size": True,  # positions are interpolated ...
        "dynamic_img_pad": True,  # ... and images padded
        "drop_path_rate": drop_path,
    }
    while True:
        try:
            every = {**options, **further, "num_classes": 0, "in_chans": channels}
            return timm.create_model(model.partition(".")[0], pretrained=False, **every)
        except TypeError as error:
            rejected = [name for name in options if f"'{name}'" in str(error)]
            if not rejected:
                raise ValueError(f"timm:{model} cannot be made: {line(error)}") from error
            if "drop_path_rate" in rejected and drop_path:
                log.warning("timm:%s has no stochastic depth: drop_path=%g is ignored", model, drop_path)
            options = {name: value for name, value in options.items() if name not in rejected}
        except AssertionError as error:
            raise ValueError(f"timm:{model} cannot be made for {image_size} px: {line(error)}") from error
        except (ValueError, KeyError, AttributeError, ArithmeticError) as error:
            raise ValueError(f"timm:{model} cannot be made: {line(error)}") from error


def _torchvision(model: str, channels: int, drop_path: float) -> Trunk:
    """One of torchvision's networks up to the pooling, with a new first convolution for other channels."""
    models = need("torchvision.models", "timm")
    inception = model in ("googlenet", "inception_v3")
    options = {"aux_logits": False, "init_weights": True} if inception else {}
    network = models.get_model(model, weights=None, **options)
    children = dict(network.named_children())
    ends = [i for i, name in enumerate(children) if name in POOLING]
    if not ends:  # its Vision Transformers
        same = model.replace("_", "-", 1).replace("_", "/")
        raise ValueError(
            f"torchvision:{model} is no chain of layers before a pooling; {same} is the same network"
        )
    trunk = Trunk(dict(list(children.items())[: ends[0]]))
    if model.startswith("densenet"):  # its `forward` applies an activation that is not a module
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
        log.warning("torchvision:%s has no stochastic depth: drop_path=%g is ignored", model, drop_path)
    return trunk
