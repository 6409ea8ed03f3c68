"""Projection heads: widths, biases, unit vectors; the published head's start."""

import math

import pytest
import torch
from torch import nn
from waves import wave

from omma.backbones.layers import heads
from omma.backbones.layers.heads import PrototypeHead, projector
from omma.ops.batch_norm import BatchNorm


def test_projector_layers() -> None:
    layers = list(projector([6, 8, 4]))
    assert [type(m) for m in layers] == [nn.Linear, BatchNorm, nn.ReLU, nn.Linear]
    assert layers[0].bias is None  # a norm follows
    assert layers[3].bias is not None
    assert projector([6, 8, 4])(wave(5, 6, phase=0.1).float()).shape == (5, 4)


def test_projector_that_ends_with_a_norm() -> None:
    head = projector([6, 8, 8, 4], last_norm=True)
    assert isinstance(head[-1], BatchNorm)
    assert not head[-1].affine
    assert head[-2].bias is None
    out = head(wave(16, 6, phase=0.1).float())
    torch.testing.assert_close(out.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.var(0, unbiased=False), torch.ones(4), atol=0.05, rtol=0)


def test_projector_is_its_equation() -> None:
    head = projector([3, 5, 2])
    x = wave(4, 3, phase=0.4).float()
    hidden = x @ head[0].weight.T
    hidden = (hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(head(x), hidden.relu() @ head[3].weight.T + head[3].bias)


def test_prototype_head_gives_cosines() -> None:
    head = PrototypeHead(6, 9, hidden=8, bottleneck=5)
    head.last.weight.data = 50 * head.mlp[4].weight.data.new_tensor(wave(9, 5, phase=0.2).tolist())
    x = wave(3, 6, phase=0.1).float()
    z = head.mlp(x)
    want = torch.cosine_similarity(z[:, None], head.last.weight[None], dim=-1)
    torch.testing.assert_close(head(x), want, atol=1e-6, rtol=1e-5)
    with torch.no_grad():
        before = head(x)
        head.last.weight *= 3  # directions count, lengths don't
        torch.testing.assert_close(head(x), before, atol=1e-6, rtol=1e-5)


def test_a_gain_multiplies_the_cosines() -> None:
    head, plain = PrototypeHead(6, 9, hidden=8, bottleneck=5, gain=True), PrototypeHead(6, 9, 8, 5)
    plain.load_state_dict({k: v for k, v in head.state_dict().items() if k != "last.gain"})
    x = wave(3, 6, phase=0.1).float()
    torch.testing.assert_close(head(x), plain(x))  # gains start at 1
    gain = head.last.get_parameter("gain")
    with torch.no_grad():
        gain += torch.arange(9.0)[:, None]
    torch.testing.assert_close(head(x), plain(x) * torch.arange(1.0, 10.0))
    bottleneck = head.bottleneck(x)
    torch.testing.assert_close(head.mean(bottleneck), head.cosines(bottleneck).mean(0))
    assert plain.gain is None


def test_prototype_head_moves_only_directions() -> None:
    head = PrototypeHead(6, 9, hidden=8, bottleneck=5)
    head(wave(3, 6, phase=0.1).float()).square().sum().backward()
    weight = head.last.weight
    assert weight.grad is not None
    radial = (weight.grad * weight).sum(1)
    torch.testing.assert_close(radial, torch.zeros(9), atol=1e-6, rtol=0)
    assert weight.grad.norm() > 0


def test_prototype_head_starts_as_published() -> None:
    """facebookresearch/dino 7c446df, DINOHead: truncated normal of .02, biases 0."""
    torch.manual_seed(0)
    head = PrototypeHead(64, 32, hidden=128, bottleneck=64)
    for i in (0, 2, 4):
        assert head.mlp[i].weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert head.mlp[i].bias.abs().max().item() == 0


def test_prototypes_start_as_long_as_published() -> None:
    """The published weight_v keeps nn.Linear's start: rows of length about 1 / sqrt(3)."""
    head = PrototypeHead(16, 512, hidden=8, bottleneck=256)
    assert head.last.weight.norm(dim=1).mean().item() == pytest.approx(1 / math.sqrt(3), rel=0.02)


def test_bf16_and_zeros_are_finite() -> None:
    head = PrototypeHead(6, 9, hidden=8, bottleneck=5)
    x = torch.zeros(2, 6, requires_grad=True)
    head(x).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert head.bfloat16()(x.bfloat16()).isfinite().all()


@pytest.mark.parametrize("n", [0, 1, 5])
def test_mean_of_cosines_without_the_cosines(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "_ROWS", 4)
    head = PrototypeHead(6, 9, hidden=8, bottleneck=5)
    bottleneck = wave(n, 5, phase=0.3).float()
    want = head.cosines(bottleneck).sum(0) / max(1, n)
    torch.testing.assert_close(head.mean(bottleneck), want, atol=1e-6, rtol=1e-5)
    assert head.bfloat16().mean(bottleneck.bfloat16()).dtype == torch.float32
