"""Frames of a sequence that make a sample: which they are, and that they are cut alike."""

import numpy as np
import pytest
import torch

from omma.core.protocols import BadImage, Colour, Crop, Frames, Key, Preprocess
from omma.data.batches import augment, frames, loader
from omma.data.sources.collection import ArrayImages

SEQUENCES, LENGTH = 12, 10


def shuffled():
    rng = np.random.default_rng(3)
    order = rng.permutation(SEQUENCES * LENGTH)
    return np.repeat(np.arange(SEQUENCES), LENGTH)[order], np.tile(np.arange(LENGTH), SEQUENCES)[order] * 0.5


def key(n, epoch=0, seed=5):
    return Key(seed, np.full(n, epoch), np.arange(n))


@pytest.mark.parametrize(
    "asked",
    [
        Frames(count=2, least=0.5, order="any"),
        Frames(count=5, least=0.5),
        Frames(count=3, least=1, most=2),
        Frames(count=4, least=1.5, most=1.5),
    ],
)
def test_frames_are_of_one_sequence_at_distances_in_the_range(asked):
    sequence, frame = shuffled()
    sampler = frames.Sampler(sequence, frame, asked)
    n = len(sequence)
    rows = sampler(key(n))
    assert rows.shape == (n, asked.count)
    assert (sequence[rows] == sequence[:, None]).all()
    usable = sampler.usable()
    assert (rows == np.arange(n)[:, None]).any(1).all(), "the image is one of its frames"
    distance = np.diff(frame[rows], axis=1)[usable]
    if asked.order == "ascending":
        assert (distance >= asked.least).all()
    else:
        assert (distance > 0).any()
        assert (distance < 0).any()
    assert (np.abs(distance) >= asked.least).all()
    assert (np.abs(distance) <= (asked.most or np.inf)).all()
    # of ten frames .5 apart, four at 1.5 are the first and each third one; other chains fit around any
    np.testing.assert_array_equal(usable, frame % 1.5 == 0 if asked.least == asked.most else True)


def test_every_partner_is_drawn_and_epochs_differ():
    sequence, frame = shuffled()
    sampler = frames.Sampler(sequence, frame, Frames(count=2, least=0.5, most=1.5, order="any"))
    drawn = [sampler(key(len(sequence), epoch)) for epoch in range(40)]
    assert not np.array_equal(drawn[0], drawn[1])
    middle = np.flatnonzero(frame == 2.0)[0]
    partners = {float(frame[j]) for rows in drawn for j in rows[middle]} - {2.0}
    assert partners == {0.5, 1.0, 1.5, 2.5, 3.0, 3.5}


def test_a_draw_depends_on_the_image_alone():
    sequence, frame = shuffled()
    sampler = frames.Sampler(sequence, frame, Frames(count=3, least=0.5))
    some = np.array([7, 90, 3])
    part = sampler(Key(5, np.zeros(3, int), some))
    np.testing.assert_array_equal(part, sampler(key(len(sequence)))[some])


def test_images_without_frames_at_the_distance_are_not_usable():
    sequence, frame = np.array([0, 0, 0, 1, 2, 2]), np.array([0.0, 1, 5, 0, 0, 9])
    sampler = frames.Sampler(sequence, frame, Frames(count=2, least=1, most=4))
    np.testing.assert_array_equal(sampler.usable(), [True, True, True, False, False, False])
    rows = sampler(key(6))
    np.testing.assert_array_equal(rows[3:], [[3, 3], [4, 4], [5, 5]])  # such an image stands for itself


def test_a_method_with_frames_has_one_view_a_frame():
    with pytest.raises(ValueError, match="count=1"):
        frames.plan((Crop(count=2, size=8),), Frames(count=2))
    (alike,) = frames.plan((Crop(size=8),), Frames(count=3))
    (apart,) = frames.plan((Crop(size=8),), Frames(count=3, together=False))
    assert (alike.count, alike.frames, apart.count, apart.frames) == (1, 3, 3, 1)


# ---------------------------------------------------------------- views
COLOUR = Colour(brightness=0.6, contrast=0.6, saturation=0.6, hue=0.2, jitter_p=0.9, blur_p=0.5, grey_p=0.2)
PRE = Preprocess(size=16, channels=3, low=(0,) * 3, high=(255,) * 3, mean=(0.5,) * 3, std=(0.25,) * 3)


def same_frames(n=6, copies=3, side=24):
    """The same picture in all frames of a sequence."""
    pictures = np.random.default_rng(0).integers(0, 256, (n, side, side, 3), np.uint8)
    return np.repeat(pictures, copies, axis=0)


@pytest.mark.parametrize("way", ["workers", "memory", "device"])
@pytest.mark.parametrize("augmented", [Colour(), COLOUR], ids=["plain", "colour"])
def test_frames_are_cut_and_coloured_alike_or_each_by_its_own(way, augmented):
    pictures = same_frames()
    n = len(pictures) // 3
    crop = Crop(size=16, scale=(0.3, 0.9), colour=augmented)

    def views(asked):
        plan = frames.plan((crop,), asked)
        if way == "workers":
            raw = augment.cut(list(pictures), plan, key(n))
        else:
            tensors = torch.from_numpy(pictures).permute(0, 3, 1, 2)
            cut = augment.cut_batch if way == "memory" else augment.cut_each
            raw = cut(tensors if way == "memory" else list(tensors), plan, key(n))
        return augment.augment(raw, plan, key(n), PRE)[0]

    alike = views(Frames(count=3))
    assert alike.shape == (n, 3, 3, 16, 16)
    assert torch.equal(alike[:, 0], alike[:, 1])
    assert torch.equal(alike[:, 0], alike[:, 2])
    assert not torch.equal(alike[0, 0], alike[1, 0])
    apart = views(Frames(count=3, together=False))
    assert not torch.isclose(apart[:, 0], apart[:, 1]).flatten(1).all(1).any()
    of_one = augment.augment(augment.cut(list(pictures[::3]), (crop,), key(n)), (crop,), key(n), PRE)[0]
    assert (alike[:, 0] - of_one[:, 0]).abs().mean() < 0.05, "a frame is cut as an image alone is"


def collection(side):
    pictures = np.random.default_rng(1).integers(0, 256, (SEQUENCES * LENGTH, side, side, 3), np.uint8)
    return ArrayImages(pictures)


@pytest.mark.parametrize("in_memory", [True, False], ids=["memory", "workers"])
def test_the_stream_is_the_same_whatever_workers_processes_and_restarts(in_memory):
    sequence, frame = shuffled()
    asked = Frames(count=3, least=0.5)
    sampler, plan = frames.Sampler(sequence, frame, asked), frames.plan((Crop(size=12),), asked)
    images = collection(20)

    def take(steps, **options):
        with loader.stream(images, plan, 8, 3, frames=sampler, in_memory=in_memory, **options) as stream:
            return [next(stream) for _ in range(steps)]

    whole = take(4, workers=0)
    assert whole[0].crops[0].shape == (8, 3, 3, 12, 12)
    for step in whole:
        np.testing.assert_array_equal(step.read, sampler(step.key))
    others = [take(2, workers=0, start_step=2)]
    if not in_memory:
        others.append(take(4, workers=2)[2:])
    for other in others:
        for ours, theirs in zip(whole[2:], other, strict=True):
            assert torch.equal(ours.crops[0], theirs.crops[0])
            np.testing.assert_array_equal(ours.read, theirs.read)
    shares = [take(1, workers=0, rank=rank, world=2)[0] for rank in range(2)]
    assert torch.equal(torch.cat([share.crops[0] for share in shares]), whole[0].crops[0])


class Spoilt(ArrayImages):
    """Some images cannot be read."""

    spoilt: tuple[int, ...] = ()

    def read(self, i, at_least=None):
        if int(i) in self.spoilt:
            raise BadImage("spoilt")
        return super().read(i, at_least)


@pytest.mark.parametrize("in_memory", [True, False], ids=["memory", "workers"])
def test_a_bad_frame_is_replaced_by_one_of_its_sequence(in_memory):
    sequence, frame = shuffled()
    asked = Frames(count=3, least=0.5)
    sampler, plan = frames.Sampler(sequence, frame, asked), frames.plan((Crop(size=12),), asked)
    images = Spoilt(np.random.default_rng(1).integers(0, 256, (len(sequence), 12, 12, 3), np.uint8))
    images.spoilt = (4, 50)
    options = {"frames": sampler, "in_memory": in_memory, "workers": 0}
    with loader.stream(images, plan, 30, 0, **options) as stream:
        steps = [next(stream) for _ in range(4)]
    assert set(stream.bad) == {4, 50}
    asked_for = np.concatenate([sampler(step.key) for step in steps])
    read = np.concatenate([step.read for step in steps])
    spoilt = np.isin(asked_for, images.spoilt)
    assert spoilt.any()
    assert not np.isin(read, images.spoilt).any()
    np.testing.assert_array_equal(read[~spoilt], asked_for[~spoilt])
    assert (sequence[read] == sequence[asked_for]).all()


def test_an_outlying_frame_number_blurs_no_other_distance():
    """A time stamp among counts: on one line of all sequences, fp64 would lose distances of 1."""
    sequences = 5_000
    sequence, frame = np.repeat(np.arange(sequences), 3), np.tile([0.0, 1.0, 2.0], sequences)
    frame[5] = 1.7e13
    sampler = frames.Sampler(sequence, frame, Frames(count=2, least=1, most=1))
    usable = np.flatnonzero(sampler.usable())
    assert len(usable) == len(frame) - 1
    rows = sampler(Key(0, np.zeros(len(usable), np.int64), usable))
    np.testing.assert_array_equal(np.diff(frame[rows], axis=1), 1)


def test_uneven_frames_are_used_where_the_closest_one_leads_nowhere():
    """From 0, the closest frame that is allowed is 1.0, which has none behind it; 1.2 has 2.4."""
    frame = np.array([0.0, 1.0, 1.2, 2.4])
    sampler = frames.Sampler(np.zeros(4, np.int64), frame, Frames(count=3, least=1, most=1.2))
    np.testing.assert_array_equal(sampler.usable(), [True, False, True, True])
    rows = sampler(Key(0, np.zeros(3, np.int64), np.array([0, 2, 3])))
    np.testing.assert_array_equal(frame[rows], [[0, 1.2, 2.4]] * 3)
