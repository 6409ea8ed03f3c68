"""Context prediction: which patch lies where, what is cut, and what its colours become."""

import runpy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from omma import backbones
from omma.core.protocols import Batch, Clock, Context, Key
from omma.methods import context
from omma.methods.shared import patch_grid
from omma.pretraining import saved_method
from omma.pretraining.folder import RunFolder
from omma.verbs.pretrain import pretrain

CONFIG = context.Config(patch=8, gap=3, jitter=2, hidden=16)
SIDE = patch_grid.side(8, 3, 2)


def key_of(n, first=0):
    return Key(0, np.zeros(n, np.int64), np.arange(first, first + n))


def build(config=CONFIG, channels=3):
    torch.manual_seed(0)
    encoder = backbones.build(name="vit-n/4", image_size=16, channels=channels, pool="mean", depth=1)
    return context.Method(encoder, config, Context(image_size=16))


def coordinates(b):
    """Images whose channels are row and column."""
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    return torch.stack([rows, columns]).float().expand(b, 2, SIDE, SIDE)


def test_places_are_where_the_second_patch_lies():
    first, second, place = patch_grid.neighbours(centre=False)
    assert len(place) == 40  # each of 12 beside each other and 8 across, in both directions
    down, right = np.array(patch_grid.PLACES).T
    assert ((second // 3 - first // 3) == down[place]).all()
    assert ((second % 3 - first % 3) == right[place]).all()
    assert {tuple(pair) for pair in zip(first, second, strict=True)} == {
        tuple(pair) for pair in zip(second, first, strict=True)
    }
    first, second, place = patch_grid.neighbours(centre=True)
    assert first.tolist() == [4] * 8
    assert second.tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
    assert place.tolist() == list(range(8))


def test_patches_are_cut_from_the_grid_each_with_its_own_jitter():
    images = coordinates(64)
    patches = patch_grid.cut(images, key_of(64), 8, 3, 2)
    assert patches.shape == (64, 9, 2, 8, 8)
    corners = patches[:, :, :, 0, 0].long()
    steps = torch.arange(8)
    assert torch.equal(patches[:, :, 0], (corners[:, :, 0, None, None] + steps[:, None]).expand(-1, -1, 8, 8))
    assert torch.equal(patches[:, :, 1], (corners[:, :, 1, None, None] + steps).expand(-1, -1, 8, 8))
    grid = torch.stack([torch.arange(9) // 3, torch.arange(9) % 3], 1) * 11
    moves = corners - grid
    for number in range(9):
        for axis in range(2):
            assert {*moves[:, number, axis].tolist()} == {0, 1, 2, 3, 4}  # all of -j to j, from the border
    assert not torch.equal(moves[:, 0], moves[:, 1])


def test_neighbours_never_touch():
    """Not even where both move towards each other: the gap is chosen larger than twice the jitter."""
    for size in (64, 96, 192, 224):
        config = context.small(size, "vit-n/4").config
        assert config.gap >= 2 * config.jitter
        assert patch_grid.side(config.patch, config.gap, config.jitter) <= 1.1 * size
    small = [(c.patch, c.gap, c.jitter) for c in (context.small(s, "vit-n/4").config for s in (64, 192))]
    assert small == [(16, 6, 2), (48, 24, 6)]
    paper = context.paper(224, "vit-s/16").config
    assert (paper.patch, paper.gap, paper.jitter) == (96, 48, 7)


def test_two_channels_of_three_are_dropped():
    torch.manual_seed(0)
    patches = 2 + 3 * torch.randn(16, 9, 3, 8, 8)
    dropped = patch_grid.without_colour(patches, key_of(16), "drop")
    deviations = dropped.std((3, 4))
    kept = deviations.argmax(2)
    assert {*kept.flatten().tolist()} == {0, 1, 2}
    ordered = deviations.sort(2).values
    assert (ordered[:, :, 1] < 0.02 * ordered[:, :, 2]).all()
    assert (ordered[:, :, 0] > 0).all()  # noise, not a constant
    torch.testing.assert_close(dropped.square().mean((2, 3, 4)), torch.ones(16, 9), rtol=1e-2, atol=1e-2)
    channel = int(kept[5, 3])
    own, got = patches[5, 3, channel], dropped[5, 3, channel]
    torch.testing.assert_close(got / got.std(), (own - own.mean()) / own.std(), rtol=1e-3, atol=1e-3)


def test_projection_takes_out_green_against_magenta():
    patches = torch.randn(2, 9, 3, 4, 4)
    projected = patch_grid.without_colour(patches, key_of(2), "project")
    axis = torch.tensor([-1.0, 2.0, -1.0])[:, None, None]
    torch.testing.assert_close((projected * axis).sum(2), torch.zeros(2, 9, 4, 4), rtol=0, atol=1e-5)
    grey = torch.randn(2, 9, 1, 4, 4).expand(-1, -1, 3, -1, -1)
    torch.testing.assert_close(patch_grid.without_colour(grey, key_of(2), "project"), grey)
    assert patch_grid.without_colour(patches, key_of(2), "keep") is patches


def test_the_loss_is_of_eight_places():
    method = build(replace(CONFIG, pairs="centre")).eval()
    torch.nn.init.zeros_(method.head[-1].weight)
    torch.nn.init.zeros_(method.head[-1].bias)
    batch = Batch((torch.randn(5, 1, 3, SIDE, SIDE),), key_of(5))
    output = method(batch, Clock(1, 10, 0.1))
    torch.testing.assert_close(output.loss, torch.tensor(8.0).log())
    assert output.metrics["accuracy"] == 1 / 8  # the first place is as likely as any


def test_a_pair_is_classified_from_its_two_patches():
    """Swapping what lies at two places swaps the answers."""
    method = build().eval()
    pairs = torch.tensor([[4, 4], [0, 8], [0, 7]])
    batch = Batch((torch.randn(3, 1, 3, SIDE, SIDE),), key_of(3))
    logits = method.logits(batch, pairs)
    assert logits.shape == (6, 8)
    swapped = logits.unflatten(0, (3, 2)).flip(1).flatten(0, 1)
    torch.testing.assert_close(method.logits(batch, pairs.flip(1)), swapped)


def test_positions_of_a_transformer_fit_patches_and_whole_images():
    method = build()
    for size in (8, 16, 64):
        assert method.export_encoder()(torch.randn(2, 3, size, size)).pooled.isfinite().all()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"colour": "grey"}, "method.colour='grey': choose 'drop', 'project', 'keep'"),
        ({"pairs": "some"}, "method.pairs"),
        ({"jitter": -1}, "method.jitter"),
        ({"patch": 0}, "method.patch"),
    ],
)
def test_what_cannot_be_is_refused(values, words):
    with pytest.raises(ValueError, match=words):
        context.Config(**values)


def test_projection_needs_three_colours():
    with pytest.raises(ValueError, match="needs three colours; choose drop or keep"):
        build(replace(CONFIG, colour="project"), channels=5)


def test_the_view_is_not_flipped():
    (crop,) = context.views(CONFIG, 64)
    assert (crop.count, crop.size, crop.flip_p, crop.colour) == (1, SIDE, 0.0, None)


def test_a_run_and_the_pairs_of_its_held_out_images(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 6)):
        for i in range(count):
            file = tmp_path / "images" / part / "some" / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(file)
    out = tmp_path / "run"
    pretrain(
        tmp_path / "images", out=out, method="context", model="vit-n/8", image_size=32, batch_size=4, steps=2,
        device="cpu", workers=0,
    )  # fmt: skip
    method = saved_method.whole(RunFolder(out))
    assert isinstance(method, context.Method)
    assert not method.training
    assert method.config.patch == 8
    script = Path(__file__).parents[2] / "benchmarks" / "context_pairs.py"
    monkeypatch.setattr(sys, "argv", [str(script), str(out), str(tmp_path / "images")])
    runpy.run_path(str(script), run_name="__main__")
    said = capsys.readouterr().out
    assert "patches of 8 px, gap 3, jitter 1, colours: drop" in said
    assert "of 96 pairs" in said
    assert "of 48 pairs" in said
