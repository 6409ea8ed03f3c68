"""The parts of backbones: mixers, relative positions, gated perceptrons, kernels for other patches."""

import itertools

import pytest
import torch
from torch import nn

from omma import backbones
from omma.backbones.layers import mixers, relative
from omma.backbones.layers.block import Where
from omma.ops import patches


@pytest.mark.parametrize("mixer", ["linear", "bigbird"])
@pytest.mark.parametrize(("grid", "prefix"), [((8, 8), 1), ((9, 14), 3), ((3, 2), 1)])
def test_the_fast_path_is_what_its_weights_say(mixer, grid, prefix):
    torch.manual_seed(0)
    layer = {"linear": mixers.LinearAttention, "bigbird": mixers.BigBird}[mixer](24, 3)
    where = Where(grid, prefix)
    nn.init.normal_(layer.qkv.weight, std=0.5)
    x = torch.randn(2, prefix + grid[0] * grid[1], 24)
    maps = layer.weights(x, where)
    v = layer.qkv(x).chunk(3, dim=-1)[2].unflatten(-1, (3, 8)).transpose(1, 2)
    expected = layer.proj((maps @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(x, where), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(maps.sum(-1), torch.ones_like(maps.sum(-1)))


def test_bigbird_looks_around_at_random_and_everywhere_at_once():
    torch.manual_seed(0)
    layer = mixers.BigBird(16, 2)
    grid, prefix = (24, 24), 1
    maps = layer.weights(torch.randn(1, prefix + 24 * 24, 16), Where(grid, prefix))[0, 0]
    assert (maps[0] > 0).all()  # the class token sees all
    assert (maps[:, 0] > 0).all()  # and is seen by all
    inner = maps[1:, 1:].view(24, 24, 24, 24)
    assert (inner[9, 9, 4:16, 4:16] > 0).all()  # its block and the eight around it
    far = (inner[9, 9] > 0).sum() - 12 * 12
    assert far == mixers.RANDOM * mixers.SIDE**2


def test_bigbird_on_kept_tokens_is_bigbird_on_all():
    """With all tokens kept, in another order, each token's output is the same."""
    torch.manual_seed(0)
    layer = mixers.BigBird(16, 2)
    x = torch.randn(2, 1 + 81, 16)
    order = torch.stack([torch.randperm(81), torch.randperm(81)])
    shuffled = torch.cat([x[:, :1], patches.take(x[:, 1:], order)], 1)
    whole = layer(x, Where((9, 9), 1))
    kept = layer(shuffled, Where((9, 9), 1, order))
    torch.testing.assert_close(kept[:, 1:], patches.take(whole[:, 1:], order), rtol=1e-4, atol=1e-5)


def test_fourier_is_the_real_part_of_both_transforms():
    layer = mixers.Fourier(8, 1, True)
    x = torch.randn(1, 6, 8)
    y = x.to(torch.complex64)
    n, d = (torch.exp(-2j * torch.pi * torch.outer(torch.arange(k), torch.arange(k)) / k) for k in (6, 8))
    expected = (n @ y[0] @ d).real / (6 * 8) ** 0.5
    torch.testing.assert_close(layer(x)[0], expected, rtol=1e-4, atol=1e-5)


def test_each_distance_has_its_entry():
    index = relative.distances((3, 4))
    seen = {}
    for i, j in itertools.product(range(12), repeat=2):
        step = (i // 4 - j // 4, i % 4 - j % 4)
        assert seen.setdefault(step, index[i, j].item()) == index[i, j].item()
    assert sorted(seen.values()) == list(range(5 * 7))


def test_relative_bias_of_kept_tokens_and_other_grids():
    torch.manual_seed(0)
    grid = (3, 4)
    table = torch.randn(5 * 7 + 3, 2)
    everything = relative.bias(table, grid, grid, relative.pairs(grid, None, table.device))
    assert everything.shape == (1, 2, 13, 13)
    assert torch.equal(everything[0, :, 0, 5], table[-3])  # from the class token
    assert torch.equal(everything[0, :, 5, 0], table[-2])  # to it
    assert torch.equal(everything[0, :, 0, 0], table[-1])
    keep = torch.tensor([[7, 2], [0, 11]])
    kept = relative.bias(table, grid, grid, relative.pairs(grid, keep, table.device))
    rows = torch.tensor([0, 8, 3])
    assert torch.equal(kept[0], everything[0][:, rows][:, :, rows])
    smooth = torch.linspace(-1, 1, 5).repeat_interleave(7)[:, None]  # linear in the row's distance
    wider = relative.resized(torch.cat([smooth, torch.zeros(3, 1)]), (3, 4), (6, 8))
    rows = wider[:-3].view(11, 15)
    assert torch.equal(wider[-3:], torch.zeros(3, 1))
    assert (rows.diff(dim=0) > 0).all()


@pytest.mark.parametrize("new", [24, 32, 16, 8])
def test_a_kernel_for_larger_patches_gives_the_same_tokens(new):
    """Equation 4 is exact where patches grow: <B x, w'> = <x, w>."""
    torch.manual_seed(0)
    kernel, x = torch.randn(5, 3, 16, 16), torch.randn(4, 3, 16, 16)
    found = patches.resample_kernel(kernel, new)
    assert found.shape == (5, 3, new, new)
    if new < 16:  # smooth images lose little
        x = nn.functional.interpolate(torch.randn(4, 3, 2, 2), size=16, mode="bilinear")
    resized = nn.functional.interpolate(x, size=new, mode="bilinear", antialias=True)
    before, after = (torch.einsum("bcij,dcij->bd", *pair) for pair in ((x, kernel), (resized, found)))
    if new >= 16:
        torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)
    else:
        assert torch.nn.functional.cosine_similarity(before, after).min() > 0.8


def test_padding_is_the_mean_colour_at_the_right_and_bottom():
    x = torch.ones(1, 3, 5, 8)
    out = patches.padded(x, 4)
    assert out.shape == (1, 3, 8, 8)
    assert torch.equal(out[..., :5, :], x)
    assert (out[..., 5:, :] == 0).all()
    assert patches.padded(x[..., :4, :], 4) is not None
    assert patches.padded(x[..., :4, :], 4).shape == (1, 3, 4, 8)


@pytest.mark.parametrize("name", ["vit-ti/8", "beit-ti/8", "eva02-ti/8", "dinov3-s/8"])
@pytest.mark.parametrize("options", [{}, {"mlp": "swiglu"}])
def test_attention_maps_are_what_the_network_computed_with(name, options):
    """Maps of the first layer, applied by hand to its values, give its output; for every form."""
    torch.manual_seed(0)
    net = backbones.build(name=name, image_size=32, depth=2, **options).eval()
    for p in net.parameters():
        p.data = torch.randn_like(p) * 0.1 if p.ndim < 2 else torch.randn_like(p) * 0.3
    x = torch.randn(2, 3, 32, 40)
    grid = net.grid(32, 40)
    tokens, where = net._embed(net.tokenize(x), grid, None), net.where(grid, None)
    block = net.blocks[0]
    (maps,) = net.attention(x, layers=[0])
    qkv = getattr(block.attn, "_qkv", block.attn.qkv)
    v = qkv(block.norm1(tokens)).chunk(3, dim=-1)[2]
    v = v.unflatten(-1, (net.heads, -1)).transpose(1, 2)
    expected = block.attn.proj((maps @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(block.attn(block.norm1(tokens), where), expected, rtol=1e-3, atol=1e-4)
