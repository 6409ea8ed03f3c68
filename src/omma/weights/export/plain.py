"""Attention of Swin and CaiT as plain formulas of sizes that are not yet known, for tracing.

What trains fast (windows cut by views, remembered tables, heads folded into the batch) needs numbers for
sizes. Here sizes may be symbols: whatever depends on them is arithmetic on indices.
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
    """A copy that computes the same, whose forward pass can be traced for any size; in evaluation mode."""
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
    """Windows along one side: how many, the place in the padded map at each of theirs, and where `side` went.

    The second tensor says which places take part: padding does, unless the map is no longer than a window,
    which is then the map and not shifted. The last one is the number, among all places, of each of the map's.
    """
    count = (side + window - 1) // window
    several = torch.sym_min(1, (side - 1) // window)  # 1 where there is more than one window, else 0
    shift = (window // 2) * several if shifted else 0
    full = count * window
    at = torch.arange(full, device=device) + shift
    at = torch.where(at < full, at, at - full)
    seen = at < torch.sym_max(side, several * full)
    home = torch.arange(side, device=device) - shift
    home = torch.where(home < 0, home + full, home)
    return count, at.view(count, window), seen.view(count, window), home


class Windowed(nn.Module):
    """Swin's attention within shifted windows, places gathered by number."""

    def __init__(self, attn: swin.WindowAttention) -> None:
        super().__init__()
        self.attn = attn
        self.pairs: Tensor
        self.register_buffer("pairs", relative.distances((attn.side, attn.side)), persistent=False)

    def forward(self, x: Float[Tensor, "b n d"], grid: tuple[int, int]) -> Float[Tensor, "b n d"]:
        attn, window, (rows, columns) = self.attn, self.attn.side, grid
        down, y, y_seen, y_home = _axis(rows, window, attn.shifted, x.device)
        across, z, z_seen, z_home = _axis(columns, window, attn.shifted, x.device)

        def each(a: Tensor, b: Tensor, combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
            """[windows, places] of what both axes say of a place."""
            both = combine(a[:, None, :, None], b[None, :, None, :])
            return both.reshape(down * across, window * window)

        tokens = F.pad(x, (0, 0, 0, 1))  # the padding is a row of zeros after the map's
        lost = each(y >= rows, z >= columns, torch.logical_or)
        source = each(y, z, lambda a, b: a * columns + b).masked_fill(lost, rows * columns)
        qkv = F.linear(tokens[:, source.flatten()], attn.qkv.weight, attn.qkv.bias)
        qkv = qkv.view(-1, down * across, window * window, 3, attn.heads, qkv.shape[-1] // (3 * attn.heads))
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5)  # [b, windows, heads, places, e]

        seen = each(y_seen, z_seen, torch.logical_and)[:, None, :]  # the key, by every query
        high = each(y, torch.zeros_like(z), torch.add)
        wide = each(torch.zeros_like(y), z, torch.add)
        for place in (high, wide):  # far apart in the map: neighbours only by rolling [figure 4]
            seen = seen & ((place[:, :, None] - place[:, None, :]).abs() < window)
        table = attn.relative_position_bias_table[self.pairs]
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2) + table.permute(2, 0, 1)
        scores = scores.masked_fill(~seen[:, None], -torch.inf)
        out = (scores.softmax(-1) @ v).transpose(2, 3).flatten(1, 2).flatten(2)

        number = (y_home // window * across)[:, None] + z_home // window
        number = number * window * window + (y_home % window * window)[:, None] + z_home % window
        return attn.proj(out[:, number.flatten()])


class TalkingHeads(nn.Module):
    """CaiT's attention, heads mixed before and after the softmax."""

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
