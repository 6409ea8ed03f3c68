"""Token mixers that can replace full softmax attention in any ViT."""

import functools
import itertools

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from omma.backbones.layers.block import NOWHERE, Attention, Packed, Where, per_length
from omma.ops import attention


class LinearAttention(Attention):
    """Linear attention [Katharopoulos 2020, arXiv 2006.16236, eq. 6]: cost grows with n, not n^2.

    The softmax is replaced by phi(q) phi(k)^T, phi(x) = elu(x) + 1, so that the sum over keys of phi(k) v is
    computed only once for all queries.
    """

    def _split(self, qkv: Float[Tensor, "b n 3d"]) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = attention.split(qkv, self.heads)
        return F.elu(q) + 1, F.elu(k) + 1, v

    @per_length
    def _mix(self, qkv: Float[Tensor, "b n 3d"], where: Where) -> Float[Tensor, "b n d"]:
        q, k, v = self._split(qkv)
        k = k / k.shape[2]  # keeps sums of order one in half precision, and cancels in the ratio
        total = k.sum(2, keepdim=True).transpose(-1, -2)
        return attention.merge((q @ (k.transpose(-1, -2) @ v)) / (q @ total))

    def weights(self, x: Float[Tensor, "b n d"], where: Where = NOWHERE) -> Float[Tensor, "b h n n"]:
        """phi(q) phi(k)^T, each row divided by its sum."""
        q, k, _ = self._split(self.qkv(x))
        return F.normalize(q @ k.transpose(-1, -2), p=1, dim=-1)


class Fourier(nn.Module):
    """Re(F_n F_d x) [Lee-Thorp 2021, arXiv 2105.03824, eq. 3]: mixing without parameters.

    The transforms are orthonormal, so that the branch preserves the norm of its input (the paper's are not,
    and a layer norm follows them). It has no attention weights, and cannot drop tokens.
    """

    def __init__(self, dim: int, heads: int, qkv_bias: bool) -> None:
        super().__init__()

    @per_length
    def _mix(self, x: Float[Tensor, "b n d"], where: Where) -> Float[Tensor, "b n d"]:
        if not len(x):  # MKL refuses a transform of none in older versions of PyTorch
            return x
        return torch.fft.fft2(x.float(), norm="ortho").real.to(x.dtype)

    def forward(self, x: Float[Tensor, "b n d"], where: Where | Packed = NOWHERE) -> Float[Tensor, "b n d"]:
        return self._mix(x, where)


SIDE = 4  # tokens along a side of BigBird's blocks
RANDOM = 2  # random blocks that each block attends to


class BigBird(Attention):
    """Local, global and random attention [Zaheer 2020, arXiv 2007.14062], for grids: cost grows with n.

    The grid is cut into blocks of 4 x 4 tokens. A block's tokens attend to their own block, to its eight
    neighbours, to two random blocks that are fixed for each grid, and to the tokens before the patches; those
    attend to all tokens, and all attend to them.
    """

    @per_length
    def _mix(self, qkv: Float[Tensor, "b n 3d"], where: Where) -> Float[Tensor, "b n d"]:
        if where.keep is not None:  # few scattered tokens: full attention with a mask
            return attention.attend(qkv, self.heads, where.rope, _hidden(where, qkv))
        q, k, v = attention.split(qkv, self.heads, where.rope)
        p, (rows, columns) = where.prefix, where.grid
        ids, valid = _tables(where.grid, qkv.device)

        def cut(t: Tensor) -> Tensor:  # [b, h, n, e] to [b, h, blocks, tokens, e]
            t = t[:, :, p:].unflatten(2, where.grid)
            t = F.pad(t, (0, 0, 0, -columns % SIDE, 0, -rows % SIDE))
            return rearrange(t, "b h (r s) (c t) e -> b h (r c) (s t) e", s=SIDE, t=SIDE)

        def gathered(t: Tensor) -> Tensor:  # [b, h, blocks, keys, e]: those that each block attends to
            blocks = cut(t)[:, :, ids].flatten(3, 4)
            return torch.cat([t[:, :, None, :p].expand(-1, -1, len(ids), -1, -1), blocks], dim=3)

        mask = F.pad(valid, (p, 0), value=True)[:, None]  # [blocks, 1, keys]
        local = F.scaled_dot_product_attention(cut(q), gathered(k), gathered(v), mask)
        r = -(-rows // SIDE)
        local = rearrange(local, "b h (r c) (s t) e -> b h (r s) (c t) e", r=r, s=SIDE)
        local = local[:, :, :rows, :columns].flatten(2, 3)
        of_prefix = F.scaled_dot_product_attention(q[:, :, :p], k, v)
        return attention.merge(torch.cat([of_prefix, local], dim=2))

    def weights(self, x: Float[Tensor, "b n d"], where: Where = NOWHERE) -> Float[Tensor, "b h n n"]:
        """Zero where a token does not attend."""
        q, k, _ = attention.split(self.qkv(x), self.heads, where.rope)
        return attention.weights(q, k, _hidden(where, q))


@functools.lru_cache(maxsize=32)
def _blocks(grid: tuple[int, int]) -> np.ndarray:
    """int64 [blocks, 9 + RANDOM]: the blocks that each block attends to, padded with -1."""
    r, c = -(-grid[0] // SIDE), -(-grid[1] // SIDE)
    rng = np.random.default_rng(0)
    table = np.full((r * c, 9 + RANDOM), -1, np.int64)
    for i, (row, column) in enumerate(itertools.product(range(r), range(c))):
        near = [
            y * c + x
            for y, x in itertools.product(range(row - 1, row + 2), range(column - 1, column + 2))
            if 0 <= y < r and 0 <= x < c
        ]
        far = np.setdiff1d(np.arange(r * c), near)
        drawn = rng.choice(far, min(RANDOM, len(far)), replace=False)
        table[i, : len(near)] = near
        table[i, 9 : 9 + len(drawn)] = drawn
    return table


def _tables(
    grid: tuple[int, int], device: torch.device
) -> tuple[Int[Tensor, "blocks attended"], Bool[Tensor, "blocks keys"]]:
    """Blocks that each block attends to, and which of their tokens exist (no padding)."""
    table = torch.from_numpy(_blocks(grid))
    rows, columns = grid
    real = torch.zeros(-(-rows // SIDE) * SIDE, -(-columns // SIDE) * SIDE, dtype=torch.bool, device="cpu")
    real[:rows, :columns] = True
    real = rearrange(real, "(r s) (c t) -> (r c) (s t)", s=SIDE, t=SIDE)
    valid = real[table.clamp(min=0)] & (table >= 0)[:, :, None]
    return table.clamp(min=0).to(device), valid.flatten(1).to(device)


def _hidden(where: Where, like: Tensor) -> Float[Tensor, "b 1 n n"]:
    """0 where a token attends to another, otherwise -inf; for all tokens, or those in where.keep."""
    rows, columns = where.grid
    y, x = (torch.arange(side, device="cpu") // SIDE for side in (rows, columns))
    y, x = torch.meshgrid(y, x, indexing="ij")
    block = (y * -(-columns // SIDE) + x).flatten()
    table = torch.from_numpy(_blocks(where.grid))
    attends = torch.zeros(len(table), len(table) + 1, dtype=torch.bool, device="cpu")
    attends.scatter_(1, table.where(table >= 0, len(table)), True)
    own = block[None] if where.keep is None else block[where.keep.cpu()]
    allowed = attends[own[:, :, None], own[:, None, :]]
    allowed = F.pad(allowed, (where.prefix, 0, where.prefix, 0), value=True)[:, None]
    hidden = torch.zeros(allowed.shape, device="cpu").masked_fill(~allowed, -torch.inf)
    return hidden.to(like.device, like.dtype)
