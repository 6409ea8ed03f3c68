"""Egomotion: relative poses, their patterns, and the modes."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from omma import backbones
from omma.core.protocols import Batch, Clock, Context, Key, Tracks
from omma.losses import motion
from omma.methods import egomotion
from omma.methods.shared import motions


def pose(yaw, x=0.0, y=0.0, z=0.0):
    """Camera-to-world, row by row: turned about the downward axis by `yaw` degrees, at a place."""
    a = np.radians(yaw)
    r = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    return torch.from_numpy(np.concatenate([r, [[x], [y], [z]]], axis=1).ravel())


def between(first, second, period=360.0):
    return motions.between(first[None], second[None], period)[0]


def test_motion_is_seen_from_the_first_camera():
    """A car that faces east (yaw 90) and drives east drives forward, whatever its heading."""
    for yaw in (0, 90, 200):
        a = np.radians(yaw)
        there = pose(yaw, x=3 * np.sin(a), z=3 * np.cos(a))
        torch.testing.assert_close(between(pose(yaw), there), torch.tensor([0, 0, 0, 0, 0, 3.0]).double())
        turned = between(pose(yaw), pose(yaw + 30))
        torch.testing.assert_close(turned, torch.tensor([0, np.radians(30), 0, 0, 0, 0]).double())
    left, right = between(pose(10), pose(-10)), between(pose(10), pose(30))
    torch.testing.assert_close(left, -right)


def test_rotation_vectors_equal_scipys():
    from scipy.spatial.transform import Rotation

    vectors = np.array([[0.3, -0.2, 0.9], [1e-7, 0, 0], [0, 0, 0], [2.0, 1.5, -1.0]])
    matrices = Rotation.from_rotvec(vectors).as_matrix()
    poses = torch.from_numpy(np.concatenate([matrices, np.zeros((4, 3, 1))], axis=2).reshape(4, 12))
    first = pose(0).expand(4, 12)
    torch.testing.assert_close(
        motions.between(first, poses, 0)[:, :3], torch.from_numpy(vectors), atol=1e-12, rtol=1e-7
    )


def test_an_angle_has_a_full_turn_and_other_numbers_none():
    one, two = torch.tensor([350.0]).double(), torch.tensor([10.0]).double()
    torch.testing.assert_close(between(one, two), between(one * 0, one * 0 + 20))
    torch.testing.assert_close(between(one, two, 0), torch.tensor([-340.0]).double())
    three = torch.tensor([1.0, 2.0, 3.0]).double()
    torch.testing.assert_close(between(three, three * 2), three)


KITTI = Path(__file__).parents[2].parent / "shared" / "data" / "kitti_vo_s192.zip"


@pytest.mark.skipif(not KITTI.exists(), reason=f"{KITTI.name} is not there")
def test_kittis_poses_are_read_as_they_are_meant():
    """Sequence 1 drives 60 m straight on, sequence 2 turns by 98 degrees; both forward, along z."""
    total = {}
    with zipfile.ZipFile(KITTI) as file:
        for name in ("seq1", "seq2"):
            poses = torch.from_numpy(np.loadtxt(file.open(f"{name}/poses.txt")))
            assert poses.shape == (51, 12)
            moves = motions.between(poses[:-1], poses[1:], 0)
            assert (moves[:, 5] > 0).all()
            total[name] = moves.sum(0)
    assert float(total["seq1"][5]) == pytest.approx(60, abs=3)
    assert abs(np.degrees(float(total["seq1"][1]))) < 3
    assert abs(np.degrees(float(total["seq2"][1]))) == pytest.approx(98, abs=4)


TURNS = torch.tensor([20.0, -20.0, 20.0, -20.0, 40.0, -40.0]).double()[:, None]


def test_patterns_are_the_different_motions():
    moves = motions.between(torch.zeros_like(TURNS), TURNS, 360.0)
    maps = motions.Maps(moves, 1, 360.0, patterns=6, dim=3)
    assert maps.matrices.shape == (4, 3, 3)
    assert torch.equal(maps.matrices[2], torch.eye(3))
    found = maps.pattern(torch.stack([torch.full_like(TURNS, 300), 300 + TURNS], dim=1))
    assert found[0] == found[2]
    assert found[1] == found[3]
    assert len(set(found.tolist())) == 4
    assert len(motions.Maps(moves, 1, 360.0, patterns=2, dim=3).matrices) == 2
    again = motions.Maps(moves.flip(0), 1, 360.0, patterns=6, dim=3)
    torch.testing.assert_close(again.centres, maps.centres)  # whatever order k-means finds them in


def test_rotation_and_translation_are_scaled_to_equal_spread():
    yaw, forward = [5.0, -5.0, 0.0, 0.0], [0.0, 0.0, 900.0, -900.0]
    poses = torch.stack([pose(a, z=f) for a, f in zip(yaw, forward, strict=True)])
    moves = motions.between(pose(0).expand(4, 12), poses, 0)
    maps = motions.Maps(moves, 12, 0, patterns=4, dim=2)
    assert len(maps.centres) == 4  # meters do not drown radians
    assert maps.scale[0] == maps.scale[1] == maps.scale[2]
    spread = (moves / maps.scale.double()).square().sum(0)
    torch.testing.assert_close(spread[:3].sum(), spread[3:].sum(), rtol=1e-5, atol=0)


def build(mode="equiv", n=20, **options):
    torch.manual_seed(0)
    encoder = backbones.build(name="vit-n/4", image_size=8, depth=1, dim=16, heads=2, hidden=16, pool="mean")
    config = egomotion.Config(mode=mode, pose="azimuth", out=8, most=2.0, **options)
    index = np.arange(n)
    fields = {"azimuth": (20.0 * (index % 5)).astype(np.float32)[:, None]}
    tracks = Tracks(index // 5, (index % 5).astype(np.float64), fields)
    return egomotion.Method(encoder, config, Context(image_size=8, images=n, tracks=tracks))


def batch(method, rows, others):
    rows, others = np.array(rows), np.array(others)
    images = torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    pairs = np.stack([rows, others], axis=1)
    azimuth = torch.from_numpy(20.0 * (pairs % 5)).float()[..., None]
    key = Key(0, np.zeros(len(rows), np.int64), rows)
    return Batch((images[pairs],), key, fields={"azimuth": azimuth})


ROWS, OTHERS = [0, 6, 7, 13], [1, 5, 9, 12]  # turns of +20, -20, +40, -20 in three sequences


def test_the_loss_is_of_z_its_maps_and_the_pairs_own_patterns():
    method = build().eval()
    assert len(method.maps.matrices) == 4
    with torch.no_grad():
        method.maps.matrices += 0.1 * torch.randn(method.maps.matrices.shape)
    given = batch(method, ROWS, OTHERS)
    out = method(given, Clock(0, 10, 0.0))
    pattern = method.maps.pattern(given.fields["azimuth"])
    assert pattern[1] == pattern[3]
    assert len(set(pattern.tolist())) == 3
    first, second = (method.head(method.encoder(given.views[0][:, k]).pooled) for k in (0, 1))
    loss, error = motion.equivariance(first, second, method.maps.matrices, pattern, 1.0)
    torch.testing.assert_close(out.loss, loss)
    torch.testing.assert_close(out.metrics["equivariance_error"], error)


def test_modes_add_up():
    losses = {}
    for mode in egomotion.MODES:
        method = build(mode, slowness=0.5).eval()
        losses[mode] = method(batch(method, ROWS, OTHERS), Clock(0, 10, 0.0)).loss
        assert (method.maps is None) == (mode in ("drlim", "temporal"))
    torch.testing.assert_close(losses["equiv+drlim"], losses["equiv"] + 0.5 * losses["drlim"])
    assert not torch.isclose(losses["temporal"], losses["drlim"])


def test_decay_spares_the_maps_which_begin_at_the_identity():
    method = build()
    decayed = {id(p) for group in method.groups() if group.decay for p in group.params}
    assert id(method.maps.matrices) not in decayed


def test_options_and_columns():
    with pytest.raises(ValueError, match=r"method.mode='slow': choose 'equiv'"):
        egomotion.Config(mode="slow")
    assert egomotion.needs(egomotion.Config()).fields[0].name == "pose"
    several = egomotion.needs(egomotion.Config(pose="x, y")).fields[0]
    assert (several.name, several.columns) == ("pose", ("x", "y"))
    (crop,) = egomotion.views(egomotion.Config(), 32)
    assert crop.flip_p == 0


def test_poses_on_a_map_are_refused_where_their_digits_do_not_tell_motions():
    """UTM coordinates in metres, in 32 bits: steps of .8 m become 1 or .5."""
    poses = np.tile(np.eye(4)[:3].ravel(), (40, 1))
    poses[:, 3], poses[:, 7] = 4.6e5 + 0.8 * np.arange(40), 5.4e6 + 0.3 * np.arange(40)

    def pairs(numbers):
        numbers = numbers.astype(np.float32).astype(np.float64)  # as fields come
        return np.stack([numbers[:-1], numbers[1:]], 1)

    with pytest.raises(
        ValueError, match=r"number 7 of a pose is up to 5,400,01\d, where 32 bits round by 0.5"
    ):
        motions.checked(pairs(poses))
    near = pairs(poses - poses.mean(0) * (np.arange(12) % 4 == 3))
    assert np.array_equal(motions.checked(near), near)
    turning = np.stack([pose(0.001 * k, x=2).numpy() for k in range(40)])  # tiny steps of small numbers
    assert len(motions.checked(pairs(turning))) == 39
