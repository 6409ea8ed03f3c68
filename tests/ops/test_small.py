"""The small pure functions of ops: schedules, patches, positions, averages, masks, attention."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from omma.core.protocols import Clock, Key, Recipe
from omma.methods.shared import masking
from omma.ops import attention, patches, positions
from omma.train import ema, param_groups, schedules


def test_cosine_and_linear():
    assert schedules.cosine(0.996, 1.0, 0.0) == pytest.approx(0.996)
    assert schedules.cosine(0.996, 1.0, 1.0) == pytest.approx(1.0)
    assert schedules.cosine(0.996, 1.0, 0.5) == pytest.approx(0.998)
    assert schedules.cosine(0.0, 1.0, 2.0) == pytest.approx(1.0)
    assert schedules.linear(2.0, 4.0, 0.25) == pytest.approx(2.5)
    # facebookresearch/dino 7c446df, utils.cosine_scheduler(.996, 1, 10, 10) at iteration 37 of 100
    assert schedules.cosine(0.996, 1.0, 0.37) == pytest.approx(0.997205704, abs=1e-8)


def test_warmup_starts_above_zero_and_ends_at_the_end():
    recipe = Recipe(config=None, batch=1, lr=1.0, lr_end=0.1, warmup=0.2)
    rates = [schedules.learning_rate(Clock(s, 10, 0.0), recipe) for s in range(11)]
    assert rates[:3] == pytest.approx([0.5, 1.0, 1.0])
    assert rates[10] == pytest.approx(0.1)
    at_once = dataclasses.replace(recipe, warmup=0.0)
    assert schedules.learning_rate(Clock(0, 3, 0.0), at_once) == pytest.approx(1.0)


@pytest.mark.parametrize("patch", [2, 4])
def test_patchify_is_undone_and_ordered_as_a_convolution(patch):
    images = torch.randn(2, 3, 8, 12)
    cut = patches.patchify(images, patch)
    assert torch.equal(patches.unpatchify(cut, patch, (8 // patch, 12 // patch)), images)
    convolution = nn.Conv2d(3, 5, patch, patch, bias=False)
    expected = convolution(images).flatten(2).transpose(1, 2)
    torch.testing.assert_close(cut @ convolution.weight.flatten(1).T, expected)
    with pytest.raises(ValueError, match="no multiple"):
        patches.patchify(images, 5)


def test_normalised_patches():
    target = patches.normalised(torch.randn(2, 3, 48) * 5 + 2)
    torch.testing.assert_close(target.mean(-1), torch.zeros(2, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(target.var(-1), torch.ones(2, 3), atol=1e-4, rtol=0)
    assert torch.isfinite(patches.normalised(torch.ones(1, 1, 48))).all()


def test_positions():
    assert positions.sincos_2d(8, (2, 3)).shape == (6, 8)
    with pytest.raises(ValueError, match="multiple of 4"):
        positions.sincos_2d(6, (2, 2))
    x = torch.randn(1, 16, 8)
    assert positions.resample(x, (4, 4), (4, 4)) is x
    flat = positions.resample(torch.ones(1, 16, 8), (4, 4), (6, 5))
    torch.testing.assert_close(flat, torch.ones(1, 30, 8))


def test_moving_average():
    slow, fast = nn.Linear(2, 2), nn.Linear(2, 2)
    expected = 0.9 * slow.weight + 0.1 * fast.weight
    ema.update(slow, fast, 0.9)
    torch.testing.assert_close(slow.weight, expected)
    assert slow.weight.grad is None
    with pytest.raises(ValueError, match="momentum"):
        ema.update(slow, fast, 1.5)


def test_masks_depend_on_the_image_alone():
    def keep(index):
        return masking.random_keep(Key(0, np.zeros(len(index), np.int64), np.array(index)), 5, 16, 0.75)

    kept = keep([3, 8, 11])
    assert kept.shape == (3, 4)
    assert torch.equal(kept[1], keep([8])[0])
    assert all(len(set(row.tolist())) == 4 and row.min() >= 0 and row.max() < 16 for row in kept)
    assert not torch.equal(kept[0], kept[1])
    everywhere = keep(range(400)).flatten().bincount(minlength=16)
    assert everywhere.min() > 60  # of 100 each, on average


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("tokens", [5, 40])  # short rows take another route through softmax
def test_attention_by_any_route_is_the_formula(dtype, training, tokens):
    qkv = torch.randn(2, tokens, 72, dtype=dtype, requires_grad=True)
    weight = torch.randn(2, tokens, 24, dtype=dtype)
    exact = qkv.detach().double().requires_grad_()
    q, k, v = attention.split(exact, 3)
    expected = attention.merge((q @ k.transpose(-1, -2) / math.sqrt(8)).softmax(-1) @ v)
    with torch.set_grad_enabled(training):
        out = attention.attend(qkv, 3)
    atol = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=atol)
    if training:
        (ours,) = torch.autograd.grad(out, qkv, weight)
        (theirs,) = torch.autograd.grad(expected, exact, weight.double())
        error = (ours.double() - theirs).norm() / theirs.norm()
        assert error < (1e-5 if dtype == torch.float32 else 1e-2)


def test_groups_spare_norms_biases_and_tokens():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.norm = nn.Linear(2, 2), nn.LayerNorm(2)
            self.token = nn.Parameter(torch.zeros(1, 1, 2))
            self.frozen = nn.Parameter(torch.zeros(2, 2), requires_grad=False)

    net = Net()
    decayed, spared = param_groups.standard(net, "net")
    assert [id(p) for p in decayed.params] == [id(net.linear.weight)]
    assert {id(p) for p in spared.params} == {
        id(net.linear.bias), id(net.norm.weight), id(net.norm.bias), id(net.token)
    }  # fmt: skip
    assert decayed.decay
    assert not spared.decay


def test_groups_spare_what_a_module_names():
    class Table(nn.Module):
        undecayed = ("table",)

        def __init__(self):
            super().__init__()
            self.table, self.weight = nn.Parameter(torch.zeros(5, 2)), nn.Parameter(torch.zeros(2, 2))

    net = nn.Sequential(Table())
    decayed, spared = param_groups.standard(net, "net")
    assert [id(p) for p in decayed.params] == [id(net[0].weight)]
    assert [id(p) for p in spared.params] == [id(net[0].table)]
