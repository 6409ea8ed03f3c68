"""Attention within shifted windows of a map of tokens [Liu 2021, arXiv 2103.14030, section 3.2]."""

import functools
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from omma.ops import attention

LANES = 32  # numbers of bf16 in a register of 512 bits


class Windows(NamedTuple):
    """How a map is cut: padded at its bottom and right, rolled by `shift`, cut into w windows of n positions.

    Each window has n queries and m >= n keys, of which the last m - n are padding.
    """

    grid: tuple[int, int]  # rows and columns of the map
    full: tuple[int, int]  # the same, padded to whole windows
    size: tuple[int, int]  # rows and columns of a window
    shift: tuple[int, int]
    positions: Int[Tensor, "w n"]  # of the windows' tokens in the padded map, numbered row by row
    pairs: Int[Tensor, "n m"]  # for query and key, the index into a table of relative positions
    mask: Float[Tensor, "#w 1 n m"] | None  # -inf for pairs that must not attend, else 0
    real: Bool[Tensor, "r c 1"] | None  # False for padding in the rolled map; None without padding

    def roll(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b r c d"]:
        """The map, padded with zeros and rolled."""
        (rows, columns), (high, wide) = self.grid, self.full
        x = x.unflatten(1, self.grid)
        if self.real is not None:
            x = F.pad(x, (0, 0, 0, wide - columns, 0, high - rows))
        return x.roll((-self.shift[0], -self.shift[1]), (1, 2)) if any(self.shift) else x

    def unroll(self, x: Float[Tensor, "b r c d"]) -> Float[Tensor, "b n d"]:
        """The inverse; padding is cut off."""
        x = x.roll(self.shift, (1, 2)) if any(self.shift) else x
        return x[:, : self.grid[0], : self.grid[1]].flatten(1, 2)

    def cut(self, x: Float[Tensor, "b r c f"], parts: int, heads: int) -> Float[Tensor, "p b i j h y x e"]:
        """A view by part, sample, window (row i, column j), head, position (row y, column x) and channel."""
        (high, wide), (h, w) = self.full, self.size
        e = x.shape[-1] // (parts * heads)
        x = x.view(x.shape[0], high // h, h, wide // w, w, parts, heads, e)
        return x.permute(5, 0, 1, 3, 6, 2, 4, 7)

    def join(self, x: Float[Tensor, "b i j h y x e"]) -> Float[Tensor, "b r c d"]:
        """The inverse of one part of `cut`."""
        return x.permute(0, 1, 4, 2, 5, 3, 6).reshape(x.shape[0], *self.full, x.shape[3] * x.shape[6])


@functools.lru_cache(maxsize=64)
def cached(
    grid: tuple[int, int], side: int, shifted: bool, lanes: int, device: torch.device, dtype: torch.dtype
) -> Windows:
    """Windows of `side` rows and columns, shifted by half; a map no longer than that is one, unshifted.

    lanes: m is rounded up to a multiple of it. `pairs` are indices into a table of (2 side - 1)^2 positions,
    row by row. The result depends on the arguments only, so it is cached here rather than in a network's
    buffers; a network can then be created without memory.
    """
    size = (min(side, grid[0]), min(side, grid[1]))
    shift = tuple(side // 2 if shifted and length > side else 0 for length in grid)
    full = (-(-grid[0] // size[0]) * size[0], -(-grid[1] // size[1]) * size[1])
    n = size[0] * size[1]
    padding = -n % lanes
    with torch.inference_mode(False):  # training may use tensors that were cached in evaluation
        y, x = torch.meshgrid(*(torch.arange(length, device=device) for length in full), indexing="ij")
        y, x = (t.roll((-shift[0], -shift[1]), (0, 1)) for t in (y, x))
        real = None if full == grid else ((y < grid[0]) & (x < grid[1]))[..., None]
        y, x = (
            t.view(full[0] // size[0], size[0], -1, size[1]).transpose(1, 2).reshape(-1, n) for t in (y, x)
        )
        dy, dx = y[:, :, None] - y[:, None], x[:, :, None] - x[:, None]
        pairs = F.pad((dy[0] + side - 1) * (2 * side - 1) + dx[0] + side - 1, (0, padding))
        mask = None
        if any(shift) or padding:
            hidden = (dy.abs() >= size[0]) | (dx.abs() >= size[1])  # neighbours only by rolling [figure 4]
            hidden = F.pad(hidden if any(shift) else hidden[:1], (0, padding), value=True)[:, None]
            mask = torch.zeros(hidden.shape, device=device, dtype=dtype).masked_fill_(hidden, -torch.inf)
    return Windows(grid, full, size, (shift[0], shift[1]), y * full[1] + x, pairs, mask, real)


def windows(grid: tuple[int, int], side: int, shifted: bool, like: Tensor) -> Windows:
    """`cached` for the device and precision of `like`, with the m for which `attend` is fastest."""
    if torch.compiler.is_compiling():  # tensors are symbols, which must not be cached
        return cached.__wrapped__(grid, side, shifted, 1, like.device, like.dtype)
    bf16_on_cpu = like.device.type == "cpu" and like.dtype == torch.bfloat16
    return cached(grid, side, shifted, LANES if bf16_on_cpu else 1, like.device, like.dtype)


def bias(table: Float[Tensor, "t h"], windows: Windows) -> Float[Tensor, "h n m"]:
    """Each head's bias for the relative position of query and key."""
    return F.embedding(windows.pairs, table).permute(2, 0, 1).contiguous()


def _masked(bias: Float[Tensor, "h n m"], windows: Windows) -> Float[Tensor, "#w h n m"]:
    return bias[None] if windows.mask is None else bias + windows.mask.to(bias.dtype)


def attend(
    qkv: Float[Tensor, "b r c 3d"], heads: int, windows: Windows, bias: Float[Tensor, "h n m"]
) -> Float[Tensor, "b r c d"]:
    """Multi-head softmax(q k^T / sqrt(e) + bias) v within each window [eq. 4] of a rolled map.

    By the plain formula on CPUs, by the fused kernel elsewhere.
    """
    bias = bias.to(qkv.dtype)
    if qkv.device.type == "cpu" and not torch.compiler.is_compiling():
        return _WrittenOut.apply(qkv, heads, windows, bias)  # pyright: ignore[reportReturnType]
    parts = windows.cut(qkv, 3, heads)
    q, k, v = parts.flatten(-3, -2).flatten(2, 4)  # windows as if they were heads
    biases = _masked(bias, windows).expand(parts.shape[2] * parts.shape[3], -1, -1, -1).flatten(0, 1)
    return windows.join(F.scaled_dot_product_attention(q, k, v, biases[None]).view(parts.shape[1:]))


def weights(
    qkv: Float[Tensor, "b r c 3d"], heads: int, windows: Windows, bias: Float[Tensor, "h n n"]
) -> Float[Tensor, "b h g g"]:
    """Attention weights between the map's g tokens; weights of padding are left out."""
    q, k, _ = windows.cut(qkv, 3, heads).flatten(-3, -2).flatten(2, 3)
    local = attention.weights(q, k, _masked(bias, windows)[None])  # [b, w, heads, n, n]
    (rows, columns), (high, wide) = windows.grid, windows.full
    dense = local.new_zeros(qkv.shape[0], heads, high * wide, high * wide)
    dense[:, :, windows.positions[:, :, None], windows.positions[:, None]] = local.transpose(1, 2)
    dense = dense.view(-1, heads, high, wide, high, wide)[:, :, :rows, :columns, :rows, :columns]
    return dense.flatten(4).flatten(2, 3)


class _WrittenOut(torch.autograd.Function):
    """The formula and its derivative as batched products of contiguous matrices.

    Keys and values are padded with zeros to m rows: a softmax in bf16 over whole registers takes half as long
    as one over 49 numbers.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, heads: int, windows: Windows, bias: Tensor) -> Tensor:
        parts = windows.cut(qkv, 3, heads)
        shape, (_, n, m), e = parts.shape[1:], bias.shape, parts.shape[-1]
        q = torch.mul(parts[0], e**-0.5, out=qkv.new_empty(shape)).view(-1, n, e)
        kv = qkv.new_empty(2, len(q), m, e)
        kv[:, :, n:] = 0
        kv[:, :, :n].view(2, *shape).copy_(parts[1:])
        p = q @ kv[0].transpose(1, 2)
        masked = _masked(bias, windows).flatten()
        p.view(-1, len(masked)).add_(masked)
        p = p.softmax(-1)
        ctx.save_for_backward(q, kv, p)
        ctx.windows, ctx.heads = windows, heads
        return windows.join((p @ kv[1]).view(shape))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, Tensor]:  # pyright: ignore
        q, (k, v), p = ctx.saved_tensors
        n, m, e = *p.shape[1:], q.shape[-1]
        g = ctx.windows.cut(grad, 1, ctx.heads).reshape(-1, n, e)
        dv = p.transpose(1, 2) @ g
        ds = torch._softmax_backward_data(g @ v.transpose(1, 2), p, -1, p.dtype)
        dqkv = grad.new_empty(*grad.shape[:3], 3 * grad.shape[3])
        parts = ctx.windows.cut(dqkv, 3, ctx.heads)
        torch.mul((ds @ k).view(parts[0].shape), e**-0.5, out=parts[0])
        parts[1].copy_((ds.transpose(1, 2) @ q)[:, :n].view(parts[1].shape))
        parts[2].copy_(dv[:, :n].view(parts[2].shape))
        dbias = ds.view(-1, ctx.heads * n * m).sum(0).view(ctx.heads, n, m)
        return dqkv, None, None, dbias
