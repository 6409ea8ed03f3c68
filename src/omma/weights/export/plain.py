"""Attention of Swin and CaiT in a form that can be traced with symbolic image sizes.

The fast forms for training (windows as views, cached tables, heads folded into the batch) need concrete
sizes. Here all that depends on sizes is arithmetic on indices.
"""

import copy
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from omma.backbones import swin
from omma.backbones.layers import relative, talking_heads
from omma.core.protocols import Backbone
from omma.ops import attention


def plain(encoder: Backbone) -> Backbone:
    """A copy in evaluation mode that computes the same and can be traced for any image size."""
    encoder = copy.deepcopy(encoder).eval().requires_grad_(False)
    for module in list(encoder.modules()):
        for name, child in module.named_children():
            if isinstance(child, swin.WindowAttention):
                setattr(module, name, Windowed(child))
            elif isinstance(child, talking_heads.TalkingHeads):
                setattr(module, name, TalkingHeads(child))
    return encoder


def _axis(
    side: int, window: int, shifted: bool, device: torch.device
) -> tuple[int, Int[Tensor, "w s"], Bool[Tensor, "w s"], Int[Tensor, "n"]]:
    """Windows along one side of the map: their number, source, validity and index.

    source: the coordinate in the padded map at each position of each window. validity: which positions take
    part in attention; padding does, unless a single window covers the map, which is then not shifted. index:
    for each coordinate of the map, its position among those of all windows.
    """
    count = (side + window - 1) // window
    has_several = torch.sym_min(1, (side - 1) // window)  # 1 where there is more than one window, else 0
    shift = (window // 2) * has_several if shifted else 0
    full = count * window
    source = torch.arange(full, device=device) + shift
    source = torch.where(source < full, source, source - full)
    valid = source < torch.sym_max(side, has_several * full)
    index = torch.arange(side, device=device) - shift
    index = torch.where(index < 0, index + full, index)
    return count, source.view(count, window), valid.view(count, window), index


class Windowed(nn.Module):
    """Swin's attention within shifted windows, whose positions are gathered by index."""

    def __init__(self, attn: swin.WindowAttention) -> None:
        super().__init__()
        self.attn = attn
        self.pairs: Tensor
        self.register_buffer("pairs", relative.distances((attn.side, attn.side)), persistent=False)

    def forward(self, x: Float[Tensor, "b n d"], grid: tuple[int, int]) -> Float[Tensor, "b n d"]:
        attn, window, (rows, columns) = self.attn, self.attn.side, grid
        n_rows, y, y_valid, y_index = _axis(rows, window, attn.shifted, x.device)
        n_columns, z, z_valid, z_index = _axis(columns, window, attn.shifted, x.device)

        def per_position(a: Tensor, b: Tensor, combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
            """Combine values of both axes for each position: [windows, positions]."""
            both = combine(a[:, None, :, None], b[None, :, None, :])
            return both.reshape(n_rows * n_columns, window * window)

        tokens = F.pad(x, (0, 0, 0, 1))  # the extra row of zeros at the end is the padding
        is_padding = per_position(y >= rows, z >= columns, torch.logical_or)
        source = per_position(y, z, lambda a, b: a * columns + b).masked_fill(is_padding, rows * columns)
        qkv = F.linear(tokens[:, source.flatten()], attn.qkv.weight, attn.qkv.bias)
        qkv = qkv.view(
            -1, n_rows * n_columns, window * window, 3, attn.heads, qkv.shape[-1] // (3 * attn.heads)
        )
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5)  # [b, windows, heads, positions, e]

        valid = per_position(y_valid, z_valid, torch.logical_and)[:, None, :]  # of the key, for every query
        row_of = per_position(y, torch.zeros_like(z), torch.add)
        column_of = per_position(torch.zeros_like(y), z, torch.add)
        for axis in (row_of, column_of):  # neighbours only because of the cyclic shift [figure 4]
            valid = valid & ((axis[:, :, None] - axis[:, None, :]).abs() < window)
        table = attn.relative_position_bias_table[self.pairs]
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2) + table.permute(2, 0, 1)
        scores = scores.masked_fill(~valid[:, None], -torch.inf)
        out = (scores.softmax(-1) @ v).transpose(2, 3).flatten(1, 2).flatten(2)

        index = (y_index // window * n_columns)[:, None] + z_index // window
        index = index * window * window + (y_index % window * window)[:, None] + z_index % window
        return attn.proj(out[:, index.flatten()])


class TalkingHeads(nn.Module):
    """CaiT's attention, with heads mixed before and after the softmax."""

    def __init__(self, attn: talking_heads.TalkingHeads) -> None:
        super().__init__()
        self.attn = attn

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        attn = self.attn
        q, k, v = attention.split(attn.qkv(x), attn.proj_l.in_features)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        maps = attn.proj_l(scores.permute(0, 2, 3, 1)).softmax(2)  # [b, n, m, heads]
        maps = attn.proj_w(maps).permute(0, 3, 1, 2)
        return attn.proj(attention.merge(maps @ v))
