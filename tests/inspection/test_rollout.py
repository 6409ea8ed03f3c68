"""Attention and its rollout: closed forms, the formula written out, and every family of networks."""

import dataclasses

import numpy as np
import pytest
import torch
from explained import bright, model, noise, squares, subject

from omma.backbones.adapters import attentive, transfg
from omma.core.protocols import NoAttention
from omma.inspection import attention, rollout
from omma.inspection.maps import subject_of


def softmaxed(layers: int, n: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, n, n, generator=generator).double().softmax(-1) for _ in range(layers)]


def identity(n: int) -> torch.Tensor:
    return torch.eye(n, dtype=torch.float64).expand(2, n, n)


def test_equals_the_formula_written_out():
    maps = softmaxed(5, 7)
    expected = torch.zeros(2, 7, 7, dtype=torch.float64)
    for image in range(2):
        product = torch.eye(7, dtype=torch.float64)
        for weights in maps:  # the first layer's first
            layer = torch.zeros(7, 7, dtype=torch.float64)
            for head in weights[image]:
                layer = layer + head / len(weights[image])
            product = (0.5 * layer + 0.5 * torch.eye(7, dtype=torch.float64)) @ product
        expected[image] = product
    found = rollout.rollout(maps[::-1], identity(7))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_rows_sum_to_one():
    found = rollout.rollout(softmaxed(6, 9), identity(9))
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 9, dtype=torch.float64), rtol=0, atol=1e-12)


def test_one_layer_is_half_attention_and_half_itself():
    (weights,) = softmaxed(1, 5)
    found = rollout.rollout([weights], identity(5))
    torch.testing.assert_close(found, 0.5 * weights.mean(1) + 0.5 * identity(5), rtol=0, atol=1e-15)


def test_uniform_attention_gives_uniform_rows_but_for_what_stays():
    layers, n = 4, 6
    uniform = torch.full((2, 3, n, n), 1 / n, dtype=torch.float64)
    found = rollout.rollout([uniform] * layers, identity(n))
    stays = 0.5**layers  # of a token itself; the rest is spread evenly
    expected = stays * identity(n) + (1 - stays) / n
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_a_class_layer_changes_the_class_tokens_row_alone():
    maps, n = softmaxed(2, 6), 6
    class_layer = maps[1][:, :, :1]
    whole = torch.eye(n, dtype=torch.float64).expand(2, 3, n, n).clone()
    whole[:, :, :1] = class_layer
    found = rollout.rollout([class_layer, maps[0]], identity(n))
    torch.testing.assert_close(found, rollout.rollout([whole, maps[0]], identity(n)), rtol=0, atol=1e-12)


def test_a_trunk_without_class_token_leaves_it_as_it_is():
    (trunk,) = softmaxed(1, 5)
    whole = torch.eye(6, dtype=torch.float64).expand(2, 3, 6, 6).clone()
    whole[:, :, 1:, 1:] = trunk
    found = rollout.rollout([trunk], identity(6))
    torch.testing.assert_close(found, rollout.rollout([whole], identity(6)), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "options", "sums"),
    [
        ("vit/4", {"pool": "mean", "class_token": False}, True),
        ("vit/4", {"registers": 2}, False),
        ("vit/4", {"pool": "mean"}, False),
        ("cait-xxs24", {"depth": 1, "patch": 4}, False),
    ],
    ids=["mean", "registers", "mean-beside-token", "cait"],
)
def test_networks_have_rollout_and_attention(name, options, sums):
    made = subject(name, **options)
    found, looked = rollout.one_map(made), attention.maps(made, -1)
    assert found.shape == (2, 4, 4)
    assert looked.shape[0] == 2
    assert looked.shape[2:] == (4, 4)
    totals = found.sum((1, 2))
    assert (totals <= 1 + 1e-5).all()
    assert (np.abs(totals - 1) < 1e-5).all() == sums  # what the prefix tokens hold is cut off
    assert (looked.sum((2, 3)) <= 1 + 1e-5).all()


def test_the_class_tokens_row_is_what_is_read():
    made = subject(registers=2)
    (weights,) = made.encoder.attention(made.pixels)
    expected = weights[:, :, 0, 3:].unflatten(-1, (4, 4))
    np.testing.assert_array_equal(attention.maps(made, -1), expected.numpy())


def test_a_mean_of_patches_reads_the_mean_of_their_rows():
    made = subject(pool="mean")
    (weights,) = made.encoder.attention(made.pixels)
    expected = weights[:, :, 1:, 1:].mean(2).unflatten(-1, (4, 4))
    np.testing.assert_allclose(attention.maps(made, -1), expected.numpy(), atol=1e-7)


def test_attentive_pooling_shows_its_own_weights():
    made = model()
    attentive.insert(made.encoder, attentive.Config(heads=2))
    torch.nn.init.normal_(made.encoder.attentive.query)
    looked = attention.maps(subject_of(made, noise(2, 16))[0], -1)
    assert looked.shape == (2, 2, 4, 4)
    np.testing.assert_allclose(looked.sum((2, 3)), 1, atol=1e-5)
    with torch.no_grad():
        features = made.encoder(noise(2, 16))
        patches, heads = features.patches, torch.from_numpy(looked).flatten(2)
        pooled = (heads[..., None] * patches.unflatten(-1, (2, 16)).transpose(1, 2)).sum(2).flatten(1)
    torch.testing.assert_close(features.pooled, pooled, atol=1e-5, rtol=0)  # its values start as the patches


def test_transfg_shows_the_patches_that_reach_the_last_layer():
    made = model(depth=3)
    transfg.insert(made.encoder, transfg.Config())
    asked = subject_of(made, noise(2, 16))[0]
    looked, rows = attention.maps(asked, -1), rollout.one_map(asked)
    assert looked.shape[2:] == rows.shape[1:] == asked.grid
    assert ((looked.mean(1) > 0).sum((1, 2)) <= 2).all()  # one patch of each of two heads


def test_merging_networks_have_attention_but_no_rollout():
    made = subject("swin", dim=24, depths=(1, 1), heads=(2, 2), size=32)
    assert attention.one_map(made).shape == (2, *made.grid)
    why = rollout.lacks(made)
    assert why is not None
    assert "merges its tokens" in why


def test_networks_without_attention_say_so():
    made = bright(squares(1)[0])
    assert "no attention" in (attention.lacks(made) or "")
    with pytest.raises(NoAttention):
        rollout.pooled_rollout(made.encoder, made.pixels)


def test_heads_and_layers_that_are_asked_for():
    made = dataclasses.replace(subject(), layers=(0, 1), heads=(1,))
    found = attention.explain(made)
    assert found.arrays["attention.0"].shape == found.arrays["attention"].shape == (2, 2, 4, 4)
    assert [rows.heads[1:] for rows in found.shows] == [("head 1",)] * 2
    with pytest.raises(ValueError, match="--heads 7"):
        attention.explain(dataclasses.replace(made, heads=(7,)))
    with pytest.raises(ValueError, match="layer 9"):
        attention.explain(dataclasses.replace(made, layers=(9,)))
