"""Interaction: which rows teach which task, of which picture, and what a table must have."""

import numpy as np
import pytest
import torch

from omma import backbones
from omma.core.protocols import Batch, Clock, Context, Key, Tracks
from omma.methods import interaction

N = 8
NAN = np.nan


def fields():
    """Pushes of the first two sequences; a grasp and a poke of single pictures; three objects."""
    push = np.full((N, 4), NAN, np.float32)
    push[:4] = np.arange(16).reshape(4, 4)
    grasp = np.full((N, 2), NAN, np.float32)
    grasp[4], grasp[5] = (95.0, 1.0), (275.0, 0.0)
    poke = np.full((N, 2), NAN, np.float32)
    poke[6] = 3.0, 1.0
    return {
        "push": push,
        "grasp": grasp,
        "poke": poke,
        "identity": np.array([0, 0, 1, 1, 2, 2, -1, -1])[:, None],
    }


def build(*tasks, **options):
    torch.manual_seed(0)
    encoder = backbones.build(name="vit-n/4", image_size=8, depth=1, dim=16, heads=2, hidden=16, pool="mean")
    tracks = Tracks(
        np.array([0, 0, 1, 1, 2, 3, 4, 5]), np.array([0, 1, 0, 1, 0, 0, 0, 0.0]),
        {task: fields()[task] for task in tasks},
    )  # fmt: skip
    config = interaction.Config(hidden=8, cells=2, **options)
    return interaction.Method(encoder, config, Context(image_size=8, images=N, tracks=tracks)).eval()


def batch(rows, **changed):
    rows = np.array(rows)
    values = fields() | changed
    images = torch.randn(N, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    held = {task: torch.from_numpy(value[rows]) for task, value in values.items()}
    return Batch((images[rows],), Key(0, np.zeros(len(rows), np.int64), rows[:, 0]), fields=held)


CLOCK = Clock(0, 10, 0.0)
SAMPLES = [[0, 1], [2, 3], [4, 4], [5, 5], [6, 6]]


def test_a_row_teaches_the_tasks_that_it_has():
    net = build("push", "grasp", "poke", "identity")
    out = net(batch(SAMPLES), CLOCK)
    assert set(out.metrics) == {"push_error", "grasp_error", "poke_error", "identity_error"}
    assert torch.isfinite(out.loss)
    # with a row of no task at all besides, each task's mean is the same
    more = net(batch([*SAMPLES, [7, 7]]), CLOCK)
    for name, value in out.metrics.items():
        torch.testing.assert_close(more.metrics[name], value, msg=name)
    torch.testing.assert_close(more.loss, out.loss)


def test_tasks_count_alike_however_many_rows_they_have():
    net = build("push", "poke")
    out = net(batch([[0, 1], [2, 3], [0, 1], [6, 6]]), CLOCK)
    torch.testing.assert_close(out.loss, out.metrics["push_error"] + out.metrics["poke_error"])


def test_pushes_are_predicted_from_both_pictures_in_units_of_their_deviation():
    net = build("push")
    given = batch([[0, 1], [2, 3]])
    encoded = net.encoder(given.views[0].flatten(0, 1))
    y = net.heads(encoded, 2)["push"]
    push = fields()["push"][:4]
    truth = torch.from_numpy(push[[0, 2]])
    expected = ((net.heads.numbers("push", y) - truth) / torch.from_numpy(push.std(0))).square().mean()
    torch.testing.assert_close(net(given, CLOCK).loss, expected)
    swapped = net(batch([[0, 3], [2, 1]]), CLOCK).loss
    assert not torch.isclose(swapped, expected)


def test_a_push_without_its_second_picture_teaches_nothing():
    tracks = fields()["push"]
    tracks[4] = 1.0
    net = build("push")
    net(batch([[0, 1]]), CLOCK)
    assert net(batch([[4, 4]], push=tracks), CLOCK).loss.item() == 0
    assert net(batch([[0, 1]], push=tracks), CLOCK).loss.item() > 0


def test_grasps_need_no_second_picture():
    config = interaction.Config(push="", identity="none")
    assert interaction.frames(config) is None
    net = build("grasp", push="", identity="none")
    given = batch([[4], [5]])
    held = {"grasp": given.fields["grasp"][:, 0]}  # [b, 2], as without frames
    out = net(given._replace(fields=held), CLOCK)
    logits = net.heads(net.encoder(given.views[0][:, 0]), 1)["grasp"][:, 9]  # 95 and 275 degrees: bin 9
    expected = -(logits[0].sigmoid().log() + (-logits[1]).sigmoid().log()) / 2
    torch.testing.assert_close(out.loss, expected)


def test_columns_that_are_named_must_exist_and_default_ones_may_lack():
    optional = {f.name: f.optional for f in interaction.needs(interaction.Config()).fields}
    assert optional == dict.fromkeys(interaction.TASKS, True)
    named = interaction.needs(interaction.Config(push="x0, y0", grasp="", poke="", identity="")).fields
    assert [(f.name, f.columns, f.optional, f.missing) for f in named] == [
        ("push", ("x0", "y0"), False, "nan")
    ]
    with pytest.raises(
        ValueError, match=r"interaction: the table has the columns of no task \(push: push_x0,"
    ):
        build()
    with pytest.raises(ValueError, match=r"method\.push, grasp, poke, identity: give the columns of one"):
        interaction.Config(push="", grasp="", poke="", identity="")


def test_the_whole_image_is_seen_and_never_mirrored():
    (crop,) = interaction.views(interaction.Config(), 64)
    assert (crop.scale, crop.ratio, crop.flip_p) == ((1.0, 1.0), (1.0, 1.0), 0.0)
    frames = interaction.frames(interaction.Config())
    assert (frames.count, frames.order, frames.alone, frames.most) == (2, "ascending", True, 1.0)


def changed(**values):
    tracks = Tracks(
        np.array([0, 0, 1, 1, 2, 3, 4, 5]), np.array([0, 1, 0, 1, 0, 0, 0, 0.0]), fields() | values
    )
    encoder = backbones.build(name="vit-n/4", image_size=8, depth=1, dim=16, heads=2, hidden=16, pool="mean")
    return interaction.Method(
        encoder, interaction.Config(hidden=8, cells=2), Context(image_size=8, images=N, tracks=tracks)
    )


def test_tasks_that_nothing_teaches_are_left_out_or_refused():
    """Columns without a value; numbers in the row of the picture after; success in percent."""
    empty = np.full((N, 2), NAN, np.float32)
    assert "poke" not in changed(poke=empty).heads.heads
    behind = np.full((N, 4), NAN, np.float32)
    behind[[1, 3]] = 1.0
    with pytest.raises(ValueError, match="no first picture of two has values of push: write them in the row"):
        changed(push=behind)
    percent = fields()["grasp"].copy()
    percent[4, 1] = 80.0
    with pytest.raises(ValueError, match="success of a grasp is 1 or 0, and a row says 80"):
        changed(grasp=percent)
    with pytest.raises(ValueError, match="grasp has 1 columns, and takes 2"):
        changed(grasp=percent[:, :1])
