"""Attention with rotary positions and biases: every route against the formula in fp64, gradients included."""

import itertools
import math

import pytest
import torch

from omma.ops import attention, positions


def naive(qkv, heads, rope, bias):
    """softmax(q k^T / sqrt(e) + bias) v, token by token and pair by pair of dimensions."""
    b, n, width = qkv.shape
    e = width // (3 * heads)
    q, k, v = (part.reshape(b, n, heads, e).transpose(1, 2) for part in qkv.split(width // 3, dim=2))
    if rope is not None:
        mates = (
            [(i, i + 1) for i in range(0, e, 2)] if rope.paired else [(i, i + e // 2) for i in range(e // 2)]
        )

        def turned(x):
            out = torch.empty_like(x)
            for i, j in mates:
                c, s = rope.cos[..., i].double(), rope.sin[..., i].double()
                out[..., i] = x[..., i] * c - x[..., j] * s
                out[..., j] = x[..., i] * s + x[..., j] * c
            return out

        q, k = turned(q), turned(k)
    scores = q @ k.transpose(-1, -2) / math.sqrt(e)
    if bias is not None:
        scores = scores + bias
    return (scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, heads * e)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("paired", [True, False, None])
@pytest.mark.parametrize("biased", ["none", "one for all", "each"])
def test_every_route_is_the_formula(dtype, paired, biased):
    torch.manual_seed(0)
    b, heads, e, grid = 2, 3, 8, (4, 5)
    n = 1 + grid[0] * grid[1]
    qkv = torch.randn(b, n, 3 * heads * e, dtype=torch.float64).to(dtype).requires_grad_()
    rope = None
    if paired is not None:
        make = positions.rope_indexed if paired else positions.rope_centred
        rope = make(e, grid, (3, 3), 1, qkv) if paired else make(e, grid, 1, qkv)
    bias = None
    if biased != "none":
        bias = torch.randn(1 if biased == "one for all" else b, heads, n, n, requires_grad=True)
    out = attention.attend(qkv, heads, rope, bias)
    upstream = torch.randn_like(out)
    out.backward(upstream)

    exact = qkv.detach().double().requires_grad_()
    exact_bias = None if bias is None else bias.detach().double().requires_grad_()
    expected = naive(exact, heads, rope, exact_bias)
    expected.backward(upstream.double())
    tolerance = 1e-5 if dtype == torch.float32 else 0.06
    pairs = [(out, expected), (qkv.grad, exact.grad)]
    if bias is not None:
        pairs.append((bias.grad, exact_bias.grad))
    for found, right in pairs:
        assert (found.double() - right).abs().max() < tolerance * max(1, right.abs().max())
    with torch.no_grad():  # the fused kernel, in bf16 too
        fused = attention.attend(qkv, heads, rope, bias)
    assert (fused.double() - expected).abs().max() < tolerance * max(1, expected.abs().max())


@pytest.mark.parametrize("make", ["indexed", "centred"])
def test_scores_depend_on_differences_of_place_only(make):
    """Two pairs of patches at the same distance have the same product; rows and columns are told apart."""
    torch.manual_seed(0)
    e, grid = 16, (5, 5)
    like = torch.zeros(1)
    if make == "indexed":
        rope = positions.rope_indexed(e, grid, (5, 5), 0, like)
    else:
        rope = positions.rope_centred(e, grid, 0, like)
    q, k = torch.randn(2, e)
    q, k = (rope.turn(x.expand(1, 1, 25, e))[0, 0] for x in (q, k))
    scores = (q @ k.T).view(5, 5, 5, 5)
    for dy, dx in itertools.product((0, 1, 2), repeat=2):
        assert torch.allclose(scores[0, 0, dy, dx], scores[1, 2, 1 + dy, 2 + dx], atol=1e-5)
    assert not torch.allclose(scores[0, 0, 1, 0], scores[0, 0, 0, 1], atol=1e-3)


def test_class_token_is_not_turned_and_kept_tokens_keep_their_places():
    rope = positions.rope_centred(8, (3, 3), 2, torch.zeros(1))
    x = torch.randn(2, 1, 11, 8)
    assert torch.equal(rope.turn(x)[:, :, :2], x[:, :, :2])
    torch.testing.assert_close(rope.turn(rope.turn(x), back=True), x)
    keep = torch.tensor([[4, 0], [8, 3]])
    kept = rope.of(keep, 2)
    rows = torch.stack([torch.cat([x[i, :, :2], x[i, :, 2:][:, keep[i]]], 1) for i in range(2)])
    whole = rope.turn(x)
    expected = torch.stack([torch.cat([whole[i, :, :2], whole[i, :, 2:][:, keep[i]]], 1) for i in range(2)])
    torch.testing.assert_close(kept.turn(rows), expected)
