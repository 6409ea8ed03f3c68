"""Any module that maps images to vectors or token maps, as a backbone."""

from typing import Any, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from omma.backbones.layers.foreign import adopt, arrange, drop_nothing
from omma.core.errors import line
from omma.core.protocols import Backbone, Features

SHAPES = "vectors [b, d], a map [b, d, h, w] or tokens [b, n, d]"


class Wrapped(Backbone):
    """A module of the user's; `wrap` documents the arguments. Parameters keep the module's names."""

    drops_tokens = False
    plain = False
    first_layers = ()

    def __init__(self, module: nn.Module, *, channels: int, image_size: int, prefix: int, name: str) -> None:
        super().__init__()
        if next(module.parameters(), None) is None:
            raise ValueError(f"{name} has no parameters: wrap a module that can be trained")
        # in a tuple, which does not register it: its children are registered with this module, below
        self._module: tuple[nn.Module] = (module,)
        self.channels, self.prefix, self.name = channels, prefix, name
        self._grids: dict[tuple[int, int], tuple[int, int]] = {}
        out = self._dry_run((image_size, image_size))
        self.kind = {2: "vector", 3: "tokens", 4: "map"}[out.ndim]
        if prefix and self.kind != "tokens":
            raise ValueError(f"prefix={prefix}: {name} gives a {self.kind}; only tokens [b, n, d] have one")
        self.dim = out.shape[-1] if self.kind == "tokens" else out.shape[1]
        rows, columns = self.grid(image_size, image_size)
        self.patch = max(1, round(image_size / max(rows, columns)))
        adopt(self, module)

    @property
    def module(self) -> nn.Module:
        return self._module[0]

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.module.training = self.training
        return self

    @torch.no_grad()
    def _dry_run(self, size: tuple[int, int]) -> Tensor:
        """The module's output for two black images, in evaluation mode; its state stays as it is."""
        first = next(self.module.parameters())
        modes = {m: m.training for m in self.module.modules()}
        images = torch.zeros(2, self.channels, *size, device=first.device, dtype=first.dtype)
        problem = f"{self.name} cannot read images of {self.channels}x{size[0]}x{size[1]}"
        try:
            out: Any = self.module.eval()(images)
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
            raise ValueError(f"{problem} (channels, height, width): {line(error)}") from error
        finally:
            for m, training in modes.items():
                m.training = training
        if not isinstance(out, Tensor):
            raise ValueError(f"{self.name} gives a {type(out).__name__}: it must give {SHAPES}")
        if out.ndim not in (2, 3, 4) or out.shape[0] != 2 or not out.is_floating_point():
            raise ValueError(
                f"{self.name} gives {out.dtype} {list(out.shape)} for 2 images: it must give float {SHAPES}"
            )
        return out

    def _arrange(self, out: Tensor, size: tuple[int, int]) -> tuple[Float[Tensor, "b n d"], tuple[int, int]]:
        """The tokens of the module's output for images of that size, and their grid."""
        if self.kind == "vector":
            return out[:, None], (1, 1)
        if self.kind == "map":
            return out.flatten(2).transpose(1, 2), (out.shape[2], out.shape[3])
        try:
            return out, arrange(self.module, self.name, out.shape[1] - self.prefix, size)
        except ValueError as error:
            raise ValueError(
                f"{error}; tokens that stand before the patches are counted by prefix="
            ) from error

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """From one dry run for each size. Raises ValueError for a size that the module cannot read."""
        size = (height, width)
        if size not in self._grids:
            self._grids[size] = self._arrange(self._dry_run(size), size)[1]
        return self._grids[size]

    def tokenize(
        self, images: Float[Tensor, "b c h w"], keep: Int[Tensor, "b m"] | None = None
    ) -> Float[Tensor, "b n d"]:
        """The module's output as tokens: a vector is one, a map's stand row by row."""
        assert keep is None, f"{self.name} cannot drop tokens"
        height, width = images.shape[-2:]
        self.grid(height, width)  # the module may refuse the size
        weight = next(p for p in self.module.parameters())
        return self._arrange(self.module(images.to(weight.dtype)), (height, width))[0]

    def encode(
        self, tokens: Float[Tensor, "b n d"], grid: tuple[int, int], keep: Int[Tensor, "b n"] | None = None
    ) -> Features:
        """`pooled`: a vector itself, else the mean of the patches."""
        assert keep is None, f"{self.name} cannot drop tokens"
        patches = tokens[:, self.prefix :]
        return Features(patches.mean(1), patches, grid, tokens[:, : self.prefix] if self.prefix else None)

    def drop_nothing(self) -> None:
        super().drop_nothing()
        drop_nothing(self.module)

    def described(self) -> dict[str, Any]:
        """Its name and the module's own description of its layers."""
        own = {"channels": self.channels, "prefix": self.prefix}
        return {"name": self.name, **own, "module": str(self.module)}

    def spec(self) -> dict[str, Any]:
        raise ValueError(
            f"{self.name} is a wrapped module, which omma cannot rebuild by name: build it in your own code "
            "and load its state_dict"
        )


def wrap(
    module: nn.Module,
    *,
    channels: int = 3,
    image_size: int = 224,
    prefix: int = 0,
    name: str | None = None,
) -> Backbone:
    """A backbone of any module that maps images [b, channels, h, w] to vectors or token maps.

    The module may give vectors [b, d], a map [b, d, h, w] or tokens [b, n, d], of which the first `prefix`
    (a class token, say) belong to no patch. One dry run with two images of `image_size` pixels finds the
    width, the grid and the patch (the pixels for each feature along a side; of a vector, all of the image).
    The module itself is wrapped, not a copy.

    Methods can train it that neither drop tokens nor need each patch embedded by itself (simclr, moco, dino,
    ...; docs/own_loop.md). A module that reads one size only needs crops of that size. Its batch norms stay
    as they are: for several processes, convert them to torch.nn.SyncBatchNorm first.

    Raises ValueError if the module refuses such images, gives something else, or has no parameters.
    """
    return Wrapped(
        module,
        channels=channels,
        image_size=image_size,
        prefix=prefix,
        name=name or f"wrapped:{type(module).__name__}",
    )
