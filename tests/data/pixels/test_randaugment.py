"""RandAugment's operations against timm's on photographs, how they are drawn, and random erasing."""

import math

import numpy as np
import pytest
import torch

from omma.core.protocols import Crop, Key, Preprocess, RandAugment
from omma.core.random import Stream
from omma.data.batches import augment
from omma.data.pixels import erasing, randaugment
from omma.data.pixels.resize import cut_into

MEAN = (0.485, 0.456, 0.406)
THEIRS = {  # in timm's words; inc1's names
    "autocontrast": "AutoContrast", "equalize": "Equalize", "invert": "Invert", "rotate": "Rotate",
    "posterize": "PosterizeIncreasing", "solarize": "SolarizeIncreasing", "solarize_add": "SolarizeAdd",
    "colour": "ColorIncreasing", "contrast": "ContrastIncreasing", "brightness": "BrightnessIncreasing",
    "sharpness": "SharpnessIncreasing", "shear_x": "ShearX", "shear_y": "ShearY",
    "translate_x": "TranslateXRel", "translate_y": "TranslateYRel",
}  # fmt: skip
GEOMETRIC = sum(randaugment.GEOMETRIC, ())
LEVELS = (0.0, 7.49, 9.0, 10.0)


def key(n, epoch=0, first=0, seed=1):
    return Key(seed, np.full(n, epoch), np.arange(first, first + n))


def photographs(size=(64, 64)):
    """[4, h, w, 3], uint8: parts of two photographs, one of them dark, one with few levels."""
    datasets = pytest.importorskip("sklearn.datasets")
    images = []
    for i, name in enumerate(("china.jpg", "flower.jpg", "china.jpg", "flower.jpg")):
        image = datasets.load_sample_image(name)
        part = np.empty((3, size[0], size[0]), np.uint8)
        cut_into(part, image, (60 * i, 90 * i, 240, 240))
        images.append(part.transpose(1, 2, 0)[:, : size[1]].copy())
    images[2] = (images[2] // 3 + 20).astype(np.uint8)
    images[3] = (images[3] // 64 * 64).astype(np.uint8)
    return np.stack(images)


def tensor(images):
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def alone(n, name, value):
    """Draws that do one operation to each of n images."""
    place = randaugment.OPERATIONS.index(name)
    return randaugment.Draws(np.full((n, 1), place), np.full((n, 1), value, np.float32))


@pytest.mark.parametrize("size", [pytest.param((32, 32), marks=pytest.mark.slow), (33, 24)])
@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", randaugment.OPERATIONS)
def test_each_operation_equals_timms(name, level, positive, size, monkeypatch):
    timm = pytest.importorskip("timm.data.auto_augment")
    image = pytest.importorskip("PIL.Image")
    monkeypatch.setattr(timm.random, "random", lambda: 0.2 if positive else 0.8)  # which side
    if name == "posterize":
        level = min(level, 9.99)  # Pillow refuses to keep no bit
    pictures = photographs(size)
    fill = tuple(round(255 * m) for m in MEAN)
    operation = timm.AugmentOp(THEIRS[name], 1.0, level, {"img_mean": fill, "interpolation": 3})
    expected = tensor(np.stack([np.array(operation(image.fromarray(p))) for p in pictures]))

    value = randaugment.strength(name, np.array(level), np.array(positive)).item()
    ours = randaugment.apply_(tensor(pictures), alone(4, name, value), [f / 255 for f in fill])
    difference = (ours - expected).abs() * 255
    # Pillow rounds each result, the contrast's mean and the blurred and grey images in between
    allowed = 2.0 if name in ("contrast", "sharpness", "autocontrast", "colour") else 1.01
    far = difference > allowed
    # a pixel whose place is on the very edge may be seen as outside by one and inside by the other
    assert far.float().mean() <= (2e-3 if name in GEOMETRIC else 0), (difference.max(), far.sum())
    assert difference.mean() < 0.7


def test_operations_leave_neighbours_alone_and_work_one_after_the_other():
    x = tensor(photographs())
    invert, turn = (randaugment.OPERATIONS.index(n) for n in ("invert", "translate_x"))
    draws = randaugment.Draws(
        np.array([[invert, turn], [-1, -1], [turn, invert], [-1, invert]]),
        np.array([[0, 0.25], [0, 0], [0.25, 0], [0, 0]], np.float32),
    )
    done = randaugment.apply_(x.clone(), draws, (0.0, 0.0, 0.0))
    torch.testing.assert_close(done[1], x[1])
    torch.testing.assert_close(done[3], 1 - x[3])
    torch.testing.assert_close(done[0, :, :, :48], 1 - x[0, :, :, 16:])
    assert (done[0, :, :, 48:] == 0).all()
    torch.testing.assert_close(done[2, :, :, :48], 1 - x[2, :, :, 16:])
    assert (done[2, :, :, 48:] == 1).all()


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_any_number_of_channels(channels):
    names = randaugment.available(channels)
    assert "colour" not in names
    assert len(names) == 14
    x = torch.rand(300, channels, 9, 9, generator=torch.Generator().manual_seed(0))
    draws = randaugment.draw(key(300), Stream.AUGMENT, RandAugment(count=3, p=1.0), 1, channels)
    assert set(np.unique(draws.operation)) == {randaugment.OPERATIONS.index(n) for n in names}
    done = randaugment.apply_(x, draws, (0.5,) * channels)
    assert done.isfinite().all()
    assert done.min() >= 0
    assert done.max() <= 1


@pytest.mark.parametrize("shape", [(1, 1), (2, 3)])
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_tiny_and_constant_images(shape, value):
    draws = randaugment.draw(key(200), Stream.AUGMENT, RandAugment(p=1.0), 1, 3)
    done = randaugment.apply_(torch.full((200, 3, *shape), value), draws, MEAN)
    assert done.isfinite().all()


def test_draws():
    draws = randaugment.draw(key(20_000), Stream.AUGMENT, RandAugment(), 2, 3)
    assert draws.operation.shape == (40_000, 2)
    assert abs((draws.operation < 0).mean() - 0.5) < 0.01
    counts = np.bincount(draws.operation[draws.operation >= 0], minlength=15) / 40_000
    assert abs(counts - 1 / 15).max() < 0.01
    angles = draws.strength[draws.operation == 3]
    assert abs((angles > 0).mean() - 0.5) < 0.04
    assert abs(np.abs(angles).mean() - 27) < 0.3  # level 9 of 10, of 30 degrees ...
    assert 1.0 < np.abs(angles).std() < 1.6  # ... with .5 of it, cut at 10
    still = randaugment.draw(key(50), Stream.AUGMENT, RandAugment(deviation=0.0), 1, 3)
    assert set(np.abs(still.strength[still.operation == 3]).round(3)) <= {27.0}


def test_draws_depend_on_the_key_alone():
    whole = randaugment.draw(key(8), Stream.AUGMENT, RandAugment(), 2, 3)
    part = randaugment.draw(Key(1, np.zeros(2, int), np.array([5, 2])), Stream.AUGMENT, RandAugment(), 2, 3)
    np.testing.assert_array_equal(whole.strength.reshape(8, 2, 2)[[5, 2]], part.strength.reshape(2, 2, 2))
    other = randaugment.draw(key(8, epoch=1), Stream.AUGMENT, RandAugment(), 2, 3)
    assert (other.operation != whole.operation).any()


@pytest.mark.parametrize("values", [{"count": 0}, {"magnitude": 11.0}])
def test_what_cannot_be_is_refused(values):
    with pytest.raises(ValueError, match=f"{next(iter(values))}=.* of RandAugment"):
        RandAugment(**values)


# ---------------------------------------------------------------- erasing
def test_rectangles_have_the_area_and_aspect_asked_for():
    n, size = 8000, 224
    boxes = erasing.draw(key(n), Stream.ERASE, 0.25, 1, size)[:, 0]
    drawn = boxes[boxes[:, 2] > 0]
    assert abs(len(drawn) / n - 0.25) < 0.02
    top, left, h, w = drawn.T
    area, aspect = h * w / size**2, h / w
    assert area.min() > 0.019
    assert area.max() < 0.335
    assert abs(area.mean() - (0.02 + 1 / 3) / 2) < 0.01
    assert aspect.min() > 0.28
    assert aspect.max() < 3.5
    assert abs(np.log(aspect).mean()) < 0.06
    assert min(top.min(), left.min()) == 0
    assert max((top + h).max(), (left + w).max()) <= size


def test_rectangles_are_distributed_like_timms(monkeypatch):
    timm = pytest.importorskip("timm.data.random_erasing")
    theirs = timm.RandomErasing(1.0, mode="const", device="cpu")
    timm.random.seed(0)
    sides = []
    for _ in range(1500):
        erased = theirs(torch.ones(1, 40, 40))[0] == 0
        sides.append((int(erased.any(1).sum()), int(erased.any(0).sum())))
    ours = erasing.draw(key(1500), Stream.ERASE, 1.0, 1, 40)[:, 0, 2:]
    for column in (0, 1):
        for q in (0.1, 0.5, 0.9):
            assert abs(np.quantile(ours[:, column], q) - np.quantile(np.array(sides)[:, column], q)) <= 2


def test_noise_is_the_images_own():
    x, rows = torch.full((12, 2, 3, 24, 24), 9.0), np.array([7, 2, 11])
    boxes = erasing.draw(key(12), Stream.ERASE, 1.0, 2, 24)
    whole = erasing.erase_(x.clone(), boxes, key(12), Stream.ERASE)
    k = key(12)
    some = Key(k.seed, k.epoch[rows], k.index[rows])
    part = erasing.erase_(x[: len(rows)].clone(), boxes[rows], some, Stream.ERASE)
    assert torch.equal(part, whole[rows])
    assert not torch.equal(whole[:, 0], whole[:, 1])
    images = whole.flatten(0, 1)
    assert len(images[images != 9.0].unique()) > 0.99 * (images != 9.0).sum()  # nothing is drawn twice


def test_erasing_fills_the_rectangles_and_nothing_else():
    x = torch.full((40, 2, 3, 24, 24), 9.0)
    boxes = erasing.draw(key(40), Stream.ERASE, 0.5, 2, 24)
    done = erasing.erase_(x.clone(), boxes, key(40), Stream.ERASE)
    for i in range(40):
        for v in range(2):
            top, left, h, w = boxes[i, v]
            inside = torch.zeros(24, 24, dtype=torch.bool)
            inside[top : top + h, left : left + w] = True
            assert torch.equal(done[i, v] != 9.0, inside.expand(3, -1, -1))
    values = done[done != 9.0]
    assert abs(values.mean()) < 0.05
    assert abs(values.std() - 1) < 0.05
    first, second = (done[:, v][(boxes[:, v, 2] > 0).nonzero()[0]] for v in (0, 1))
    assert first.flatten()[: second.numel()].tolist() != second.flatten().tolist()


# ---------------------------------------------------------------- the plan
def preprocess(channels=3):
    ends = (0.0,) * channels, (255.0,) * channels
    return Preprocess(
        size=32, channels=channels, low=ends[0], high=ends[1], mean=(0.4,) * channels, std=(0.25,) * channels
    )


PLAN = (Crop(size=32, count=2, augment=RandAugment(), erase_p=0.5),)


@pytest.mark.parametrize("chunk", [1, 5000, 10**9])
def test_views_depend_on_the_key_alone(chunk, monkeypatch):
    images, pre = photographs(), preprocess()
    whole = augment.augment(augment.cut(images, PLAN, key(4)), PLAN, key(4), pre)[0]
    monkeypatch.setattr(augment, "_CHUNK", chunk)
    some = np.array([3, 1])
    k = Key(1, np.zeros(2, int), some)
    part = augment.augment(augment.cut(images[some], PLAN, k), PLAN, k, pre)[0]
    torch.testing.assert_close(whole[some], part, atol=1e-5, rtol=0)


def test_views_are_the_operations_written_out():
    images, pre, k = photographs(), preprocess(), key(4)
    crops = augment.cut(images, PLAN, k)
    got = augment.augment(crops, PLAN, k, pre)[0]
    draws = randaugment.draw(k, Stream.AUGMENT, RandAugment(), 2, 3)
    expected = randaugment.apply_(crops[0].flatten(0, 1).float() / 255, draws, pre.mean)
    expected = pre.normalise(expected).view_as(got)
    boxes = erasing.draw(k, Stream.ERASE, 0.5, 2, 32)
    torch.testing.assert_close(got, erasing.erase_(expected, boxes, k, Stream.ERASE), atol=1e-5, rtol=0)
    assert boxes.any()


def test_describe_says_what_is_left_out():
    (rgb,), (grey,) = augment.describe(PLAN, 3), augment.describe(PLAN, 1)
    assert "2 of RandAugment's 15 operations (strength 9 of 10, p 0.5 each)" in rgb
    assert "erased 0.5" in rgb
    assert "left out" not in rgb
    assert "2 of RandAugment's 14 operations" in grey
    assert grey.endswith("left out on 1 channel: RandAugment's colour")


def test_strengths_at_the_ends():
    ends = {"posterize": (4, 1), "solarize": (256, 0), "rotate": (0, 30), "colour": (1, 1.9)}
    for name, expected in ends.items():
        values = [randaugment.strength(name, np.array(v), np.array(True)).item() for v in (0.0, 10.0)]
        assert all(math.isclose(a, b) for a, b in zip(values, expected)), name
