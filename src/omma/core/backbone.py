"""What the layers above promise and expect of an encoder."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

from jaxtyping import Float, Int
from torch import Tensor, nn


class Features(NamedTuple):
    pooled: Float[Tensor, "b d"]
    patches: Float[Tensor, "b n d"]
    grid: tuple[int, int]  # rows, columns of the whole image's patches, even if only some were encoded
    prefix: Float[Tensor, "b p d"] | None = None  # class token and the like; None without any


class NoAttention(ValueError):
    """The network has no attention weights."""


class Backbone(nn.Module):
    """An encoder in two halves, `tokenize` and `encode`, so that a method can mask tokens between them."""

    dim: int  # width of the features
    patch: int  # pixels of input for each feature, along a side
    channels: int  # input channels
    drops_tokens: bool  # can `tokenize` and `encode` work on a subset of the tokens?
    plain: bool = True  # is each patch embedded by itself, independently of its neighbours?
    packs: bool = False  # does `encode_many` call each block once, for tokens of all lengths?
    hierarchical: bool = False  # are patches merged on the way, as in Swin?
    # are activations within blocks recomputed in the backward pass (ops/recompute)?
    recompute: bool = False
    first_layers: tuple[str, ...] = ("patch_embed.proj.weight",)  # parameters that read the image's channels
    init: str = "vit"  # whose initial weights it was given (backbones/layers/init.py)
    pool: str = "mean"  # what `pooled` is: "token" for the class token's feature
    prefix: int = 0  # tokens before the patches in the last layer
    name: str  # as on the command line: "vit-ti/16"
    built_from: Mapping[str, Any]  # name, image size, channels and the options that were chosen
    adapter: str | None = None  # kind of adapter inserted (backbones/adapters) ...
    frozen: bool = False  # ... and is all else frozen?
    contrast: float = 0.0  # weight of a loss between images (losses/parts.py) that it is fine-tuned with

    @property
    def token_dim(self) -> int:
        """Width of the tokens that `tokenize` returns."""
        return self.dim

    @property
    def token_patch(self) -> int:
        """Pixels of input for each of those tokens, along a side."""
        return self.patch

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of features of an image of this size, which is padded to whole patches."""
        # no negative numbers: ONNX cuts their quotients towards zero
        return (height + self.patch - 1) // self.patch, (width + self.patch - 1) // self.patch

    def tokenize(
        self, images: Float[Tensor, "b c h w"], keep: Int[Tensor, "b m"] | None = None
    ) -> Float[Tensor, "b n d"]:
        """Patch embeddings, without positions; with `keep`, only those of these numbers."""
        raise NotImplementedError

    def encode(
        self, tokens: Float[Tensor, "b n d"], grid: tuple[int, int], keep: Int[Tensor, "b n"] | None = None
    ) -> Features:
        """Add positions and run the network; `keep`: which tokens of the grid these are; None: all."""
        raise NotImplementedError

    def encode_many(
        self, batches: Sequence[tuple[Float[Tensor, "b n d"], tuple[int, int]]]
    ) -> list[Features]:
        """Encode token tensors of several lengths; a backbone that `packs` does so in one pass."""
        return [self.encode(tokens, grid) for tokens, grid in batches]

    def forward(self, images: Float[Tensor, "b c h w"]) -> Features:
        return self.encode(self.tokenize(images), self.grid(*images.shape[-2:]))

    def attention(
        self, images: Float[Tensor, "b c h w"], layers: Sequence[int] = (-1,)
    ) -> list[Float[Tensor, "b heads n m"]]:
        """Softmax weights of `layers`, over all tokens of each (those before the patches come first).

        Only these layers compute them. Negative numbers count from the last layer. A map of n tokens takes
        4 heads n^2 bytes an image. Raises NoAttention, and ValueError for a layer that does not exist.
        """
        raise NoAttention(f"{self.name} has no attention weights; choose a transformer")

    def pooled_attention(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b heads n"]:
        """The last layer's attention to each patch: from the class token, or the mean over all patches."""
        (maps,) = self.attention(images)
        maps = maps[..., self.prefix :]
        return maps[:, :, 0] if self.pool == "token" else maps[:, :, self.prefix :].mean(2)

    def train(self, mode: bool = True) -> Self:
        """As for any module; if all but an adapter is frozen, it stays in evaluation mode."""
        super().train(mode and not self.frozen)
        if self.frozen:
            for module in self.modules():
                if getattr(module, "of_adapter", False):
                    module.train(mode)
        return self

    def by_depth(self) -> list[list[nn.Parameter]]:
        """Its parameters: the embedding's, then block by block, then those after the last block.

        A single list if the network's layers are not known.
        """
        return [list(self.parameters())]

    def repeated(self) -> list[nn.Module]:
        """Its blocks, which are called through `forward` only and have nearly all parameters; [] without any.

        They can be sharded over processes (`--shard`), compiled, and recomputed (`recompute`).
        """
        return []

    def drop_nothing(self) -> None:
        """Turn stochastic depth off, in training too."""
        for module in self.modules():
            if isinstance(getattr(module, "drop_path", None), float):
                setattr(module, "drop_path", 0.0)  # noqa: B010 (the type checker sees modules only)

    def described(self) -> dict[str, Any]:
        """What tells this network from others, for records; `spec` where omma can build it by name."""
        return self.spec()

    def spec(self) -> dict[str, Any]:
        """Keyword arguments that rebuild this network: `backbones.build(**spec)`."""
        return dict(self.built_from)
