"""The classical floor: softmax regression, an MLP, LeNet-5, and CIFAR's ResNets [He 2015, arXiv 1512.03385].

What a larger network must beat. `linear` is a matrix on the pixels, so that a classifier on top of it is
softmax regression, whose matrix is a product of two. `lenet` is [LeCun 1998, "Gradient-based learning applied
to document recognition", section II.B] with ReLU and max-pooling in place of tanh and weighted means.
`resnet20` to `resnet110` are of 6n + 2 layers for images of 32 px, with shortcuts without parameters
[He 2015, section 4.2, option A].
"""

import logging
import re
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from omma.backbones.layers import rates
from omma.core.protocols import Backbone, Features
from omma.ops.batch_norm import BatchNorm
from omma.ops.convolution import Conv2d
from omma.ops.depth import chosen

log = logging.getLogger(__name__)

RESNETS = (20, 32, 44, 56, 110)
LENET_SIDE = 32  # pixels that one feature of LeNet reads; smaller images are padded


class ResidualBlock(nn.Module):
    """relu(x + f(x)), f: two 3x3 convolutions with batch norm; where it halves the map, x has every other
    pixel and zeros in the new channels."""

    def __init__(self, fan_in: int, width: int, stride: int, drop_path: float) -> None:
        super().__init__()
        self.stride, self.more, self.drop_path = stride, width - fan_in, drop_path
        self.conv1 = Conv2d(fan_in, width, 3, stride, 1, bias=False)
        self.bn1 = BatchNorm(width)
        self.conv2 = Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = BatchNorm(width)

    def _branch(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        return self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        before = x
        if self.stride > 1 or self.more:
            before = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))
        if not self.training or not self.drop_path:
            return F.relu(before + self._branch(x))
        rows, factor = chosen(len(x), self.drop_path, x.device)
        some = self._branch(x[rows]).to(before.dtype)
        return F.relu(before.index_add(0, rows, some, alpha=factor))


class Classic(Backbone):
    """A classical network. Maps are averaged for `pooled`; `linear` and `mlp` give one vector an image.

    linear, mlp: of images of image_size; others are resized to it. lenet: smaller images than 32 px are
    padded with zeros around them; of larger ones it gives a map, with a feature every 4 px.
    dim: width of linear's feature (no fewer than the classes, or a classifier on it loses rank) and of mlp's
    layers. depth: mlp's layers. dropout: after each layer of mlp. drop_path: of the ResNets alone.
    """

    drops_tokens = False
    plain = False

    def __init__(
        self,
        name: str,
        *,
        image_size: int,
        channels: int = 3,
        dim: int | None = None,
        depth: int | None = None,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.name, self.image_size, self.channels, self.drop_path = name, image_size, channels, drop_path
        self.kind = kind(name)
        self._check(dim, depth, dropout)
        if drop_path and self.kind != "resnet":
            log.warning("%s has no stochastic depth: drop_path=%g is ignored", name, drop_path)
        if self.kind == "resnet":
            layers = _resnet(channels, int(name.removeprefix("resnet")), drop_path)
            self.dim, self.patch, self.first_layers = 64, 4, ("layers.0.weight",)
        elif self.kind == "lenet":
            layers = _lenet(channels)
            self.dim, self.patch, self.first_layers = 84, 4, ("layers.0.weight",)
        else:
            assert dim is not None
            values = channels * image_size**2
            layers = [nn.Linear(values, dim, bias=False)] if self.kind == "linear" else []
            for layer in range(depth or 0):
                layers += [nn.Linear(values if layer == 0 else dim, dim), nn.ReLU(), nn.Dropout(dropout)]
            self.dim, self.patch, self.first_layers = dim, image_size, ()
        self.layers = nn.Sequential(*layers)
        for module in self.modules():
            if self.kind != "linear" and isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)  # [He 2015, arXiv 1502.01852, eq. 10]
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def _check(self, dim: int | None, depth: int | None, dropout: float) -> None:
        """ValueError for an option that this network does not have."""
        has = {"linear": ("dim",), "mlp": ("dim", "depth", "dropout")}.get(self.kind, ())
        for option, value in (("dim", dim), ("depth", depth), ("dropout", dropout or None)):
            if value is not None and option not in has:
                raise ValueError(f"{option}={value} of {self.name}: it has no such option")
            if value is None and option in has and option != "dropout":
                raise ValueError(f"{option} of {self.name}: must be a whole number, at least 1")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout:g} of {self.name}: must lie in [0, 1)")

    @property
    def flat(self) -> bool:
        """Does it read all pixels as one vector?"""
        return self.kind in ("linear", "mlp")

    @property
    def other_sizes(self) -> str:
        """What it does with images of another size than image_size, in words."""
        if self.flat:
            return f"resized to {self.image_size} px"
        below = f", padded to {LENET_SIDE} px below it" if self.kind == "lenet" else ""
        return f"a map of another size{below}"

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """One cell where it gives one vector an image."""
        if self.flat:
            return 1, 1
        if self.kind == "resnet":
            return super().grid(height, width)
        rows, columns = ((((max(side, LENET_SIDE) - 4) // 2) - 4) // 2 - 4 for side in (height, width))
        return rows, columns

    def tokenize(
        self, images: Float[Tensor, "b c h w"], keep: Int[Tensor, "b m"] | None = None
    ) -> Float[Tensor, "b n d"]:
        """The last layer's features, row by row."""
        assert keep is None, f"{self.name} cannot drop tokens"
        first = cast(Tensor, self.layers[0].weight)
        if self.flat:
            size = (self.image_size, self.image_size)
            if tuple(images.shape[-2:]) != size:
                images = F.interpolate(images.float(), size, mode="bilinear", antialias=True)
            return self.layers(images.to(first.dtype).flatten(1))[:, None]
        if self.kind == "lenet":
            down, right = (max(LENET_SIDE - side, 0) for side in images.shape[-2:])
            if down or right:
                images = F.pad(images, (right // 2, right - right // 2, down // 2, down - down // 2))
        x = self.layers(images.to(first.dtype, memory_format=torch.channels_last))
        return x.flatten(2).transpose(1, 2)

    def encode(
        self, tokens: Float[Tensor, "b n d"], grid: tuple[int, int], keep: Int[Tensor, "b n"] | None = None
    ) -> Features:
        assert keep is None, f"{self.name} cannot drop tokens"
        return Features(tokens.mean(1), tokens, grid)

    def drop_nothing(self) -> None:
        """Turn off stochastic depth and dropout, in training too."""
        super().drop_nothing()
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0


Encoder = Classic


def _lenet(channels: int) -> list[nn.Module]:
    """C1 to F6 [LeCun 1998, figure 2]: 6, 16 and 120 maps by 5x5, then 84."""
    return [
        nn.Conv2d(channels, 6, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 120, 5), nn.ReLU(),
        nn.Conv2d(120, 84, 1), nn.ReLU(),
    ]  # fmt: skip


def _resnet(channels: int, layers: int, drop_path: float) -> list[nn.Module]:
    """A 3x3 convolution, and 3n blocks of 16, 32 and 64 channels [He 2015, table in section 4.2]."""
    n = (layers - 2) // 6
    drop_rates, width = rates(drop_path, 3 * n), 16
    modules: list[nn.Module] = [Conv2d(channels, 16, 3, 1, 1, bias=False), BatchNorm(16), nn.ReLU()]
    for block in range(3 * n):
        wider = 16 * 2 ** (block // n)
        modules.append(ResidualBlock(width, wider, 1 + (wider > width), drop_rates[block]))
        width = wider
    return modules


def kind(name: str) -> str:
    """linear, mlp, lenet or resnet; "" for another network."""
    if name in ("linear", "mlp", "lenet"):
        return name
    return "resnet" if re.fullmatch(r"resnet(20|32|44|56|110)", name) else ""


def names() -> list[str]:
    return ["linear", "mlp", "lenet", *(f"resnet{layers}" for layers in RESNETS)]


def parse(name: str) -> dict[str, Any] | None:
    """Raises ValueError for a ResNet of other layers; None for other names."""
    if kind(name):
        return {"linear": {"dim": 512}, "mlp": {"dim": 512, "depth": 2, "dropout": 0.5}}.get(name, {})
    if re.fullmatch(r"resnet\d+", name):
        known = ", ".join(map(str, RESNETS))
        raise ValueError(f"model {name!r}: CIFAR's are of {known} layers; ImageNet's are timm:{name}")
    return None
