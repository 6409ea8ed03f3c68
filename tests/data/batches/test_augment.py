"""Boxes as torchvision draws them, colour as it applies it, and views that depend on their key alone."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from omma.core.errors import install_command
from omma.core.protocols import Colour, Crop, Key, Preprocess, RandAugment
from omma.data.batches import augment
from omma.data.pixels.resize import blur_radius

COLOUR = Colour(
    brightness=0.4,
    contrast=0.4,
    saturation=0.2,
    hue=0.1,
    jitter_p=0.8,
    grey_p=0.2,
    blur_p=0.5,
    solarise_p=0.3,
)
PLAN = (
    Crop(size=20, scale=(0.4, 1.0), colour=COLOUR),
    Crop(size=12, count=3, scale=(0.05, 0.4), colour=COLOUR),
)


def key(n, epoch=0, first=0, seed=1):
    return Key(seed, np.full(n, epoch), np.arange(first, first + n))


def preprocess(channels=3, low=0.0, high=255.0):
    return Preprocess(
        size=32,
        channels=channels,
        low=(low,) * channels,
        high=(high,) * channels,
        mean=tuple(0.4 + 0.01 * i for i in range(channels)),
        std=(0.25,) * channels,
    )


def photographs(n=6, channels=3, dtype=np.uint8):
    rng = np.random.default_rng(0)
    return [(rng.random((40 + 3 * i, 30 + 5 * i, channels)) * 255).astype(dtype) for i in range(n)]


# ---------------------------------------------------------------- boxes
def test_boxes_have_the_area_and_ratio_asked_for():
    crop = Crop(size=8, count=4, scale=(0.2, 0.5), ratio=(3 / 4, 4 / 3))
    n = 2000
    boxes = augment.draw_boxes(key(n), crop, 0, np.full(n, 300), np.full(n, 400)).reshape(-1, 4)
    top, left, h, w = boxes.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + h <= 300).all()
    assert (left + w <= 400).all()
    area = h * w / (300 * 400)
    assert area.min() > 0.195
    assert area.max() < 0.505
    assert abs(area.mean() - 0.35) < 0.005
    assert (w / h).min() > 0.73
    assert (w / h).max() < 1.36
    assert abs(np.log(w / h).mean()) < 0.01
    assert abs((top / (300 - h)).mean() - 0.5) < 0.02
    assert (top == 0).any()
    assert (top + h == 300).any()


def test_boxes_are_distributed_like_torchvisions():
    transforms = pytest.importorskip("torchvision.transforms")
    crop = Crop(size=8, scale=(0.3, 1.0))
    n, image = 1000, torch.empty(1, 60, 150)
    ours = augment.draw_boxes(key(n), crop, 0, np.full(n, 60), np.full(n, 150))[:, 0]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = np.array(
            [transforms.RandomResizedCrop.get_params(image, [0.3, 1.0], [3 / 4, 4 / 3]) for _ in range(n)]
        )
    for column in range(4):
        for q in (0.1, 0.5, 0.9):
            a, b = (np.quantile(x[:, column], q) for x in (ours, theirs))
            assert abs(a - b) <= 5, (column, q)


@pytest.mark.parametrize(
    ("h", "w", "expected"), [(10, 100, (0, 43, 10, 13)), (100, 10, (43, 0, 13, 10)), (1, 1, (0, 0, 1, 1))]
)
def test_boxes_fall_back_to_the_centre(h, w, expected):
    crop = Crop(size=8, scale=(0.9, 1.0), ratio=(3 / 4, 4 / 3))
    boxes = augment.draw_boxes(key(20), crop, 0, np.full(20, h), np.full(20, w))
    for box in boxes[:, 0].tolist():
        assert box == list(expected)


def test_at_least_allows_what_the_plan_needs():
    assert augment.at_least([Crop(size=224, scale=(1.0, 1.0))]) == 224
    needed = augment.at_least([Crop(size=224, scale=(0.4, 1.0)), Crop(size=96, scale=(0.05, 0.4))])
    assert needed == math.ceil(224 / math.sqrt(0.55))


# ---------------------------------------------------------------- cutting
def test_cut_depends_on_the_key_alone():
    images = photographs()
    whole = augment.cut(images, PLAN, key(6))
    some = np.array([4, 1])
    part = augment.cut([images[i] for i in some], PLAN, Key(1, np.zeros(2, int), some))
    for a, b in zip(whole, part):
        assert a.dtype == torch.uint8
        torch.testing.assert_close(a[some], b, atol=0, rtol=0)
    assert [tuple(a.shape) for a in whole] == [(6, 1, 3, 20, 20), (6, 3, 3, 12, 12)]
    other = augment.cut(images, PLAN, key(6, epoch=1))
    assert (other[0] != whole[0]).float().mean() > 0.5


def test_both_ways_to_cut_agree_within_rounding():
    rng = np.random.default_rng(0)
    # no overshoot beyond 0..255, which the 8-bit kernel clips between its two passes
    array = (80 + rng.random((5, 32, 32, 3)) * 90).astype(np.uint8)
    ragged = augment.cut(list(array), PLAN, key(5))
    batched = augment.cut_batch(torch.from_numpy(array).permute(0, 3, 1, 2), PLAN, key(5))
    for a, b in zip(ragged, batched):
        assert (a.float() - b.clamp(0, 255)).abs().max() < 1.5
    flips = augment.draw_flips(key(400), PLAN[0], 0)
    assert 0.4 < flips.mean() < 0.6


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_on_a_device_are_cut_alike_within_rounding(channels):
    rng = np.random.default_rng(0)
    images = [(80 + rng.random((24 + 3 * i, 40 - 2 * i, channels)) * 90).astype(np.uint8) for i in range(5)]
    for some in (images, [images[0], images[1].astype(np.float32) * 300.5, *images[2:]]):
        usual = augment.cut(some, PLAN, key(5))
        others = augment.cut_each([torch.from_numpy(x).permute(2, 0, 1) for x in some], PLAN, key(5))
        for a, b in zip(usual, others, strict=True):
            assert a.dtype == b.dtype
            torch.testing.assert_close(b.float(), a.float(), atol=1, rtol=1e-5)
            assert (b.float() - a.float()).mean().abs() < 0.1  # rounded, not cut off


def test_one_raw_image_makes_the_batch_float_and_changes_no_value():
    images = photographs(3)
    alone = augment.cut(images[:1], PLAN, key(1))
    mixed = augment.cut([images[0], images[1].astype(np.float32)], PLAN, key(2))
    assert mixed[0].dtype == torch.float32
    torch.testing.assert_close(mixed[1][0], alone[1][0].float(), atol=0, rtol=0)


# ---------------------------------------------------------------- every view has its own draws
def whole_batch(images, plan, k):
    return augment.cut_batch(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), plan, k)


def on_a_device(images, plan, k):
    return augment.cut_each([torch.from_numpy(image).permute(2, 0, 1) for image in images], plan, k)


def image_by_image(images, plan, k):
    return augment.cut(images, plan, k)


WAYS = [image_by_image, on_a_device, whole_batch]
WHOLE = Crop(size=16, count=2, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip_p=0.0)  # of square images: no cut


def squares(n):
    return list(np.random.default_rng(0).integers(0, 256, (n, 16, 16, 3), np.uint8))


def each_view(crops):
    """Views of all crops of the plan [views, n, c, s, s]."""
    return torch.cat([crop.float() for crop in crops], 1).transpose(0, 1)


def share_equal(one, other):
    """Share of images whose two views are equal, but for rounding."""
    return ((one - other).abs().flatten(1).amax(1) < 1.5).float().mean()


@pytest.mark.parametrize("cut", WAYS)
def test_every_view_has_its_own_box(cut):
    crop = replace(WHOLE, scale=(0.2, 0.9))
    views = each_view(cut(squares(40), [crop, crop], key(40)))
    assert len(views) == 4
    for one, other in itertools.combinations(views, 2):
        assert share_equal(one, other) < 0.2


@pytest.mark.parametrize("cut", WAYS)
def test_every_view_has_its_own_flip(cut):
    images, crop = squares(200), replace(WHOLE, flip_p=0.5)
    straight = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()
    views = each_view(cut(images, [crop, crop], key(200)))
    assert len(views) == 4
    for view in views:
        assert 0.35 < share_equal(view, straight) < 0.65
        assert share_equal(view, straight) + share_equal(view, straight.flip(-1)) == 1
    for one, other in itertools.combinations(views, 2):
        assert 0.35 < share_equal(one, other) < 0.65


@pytest.mark.parametrize(
    ("channels", "changes"),
    [
        (3, {"colour": COLOUR}),  # by compiled loops
        (4, {"colour": replace(COLOUR, jitter_p=1)}),  # by tensors
        (3, {"augment": RandAugment(p=1.0)}),
        (3, {"erase_p": 1.0}),
    ],
)
def test_every_view_has_its_own_changes(channels, changes):
    images = [np.dstack([image, image])[:, :, :channels] for image in squares(40)]
    k, pre = key(40), preprocess(channels)
    for plan in ([WHOLE, WHOLE], [replace(WHOLE, **changes)] * 2):
        views = each_view(augment.augment(augment.cut(images, plan, k), plan, k, pre)) * 255 * 0.25
        assert len(views) == 4
        for one, other in itertools.combinations(views, 2):
            assert (share_equal(one, other) == 1) if plan[0] == WHOLE else (share_equal(one, other) < 0.3)


# ---------------------------------------------------------------- colour
JITTER = ("brightness", "contrast", "saturation", "hue")
RANDOM = replace(COLOUR, jitter_order="random")
PILLOW = replace(RANDOM, blur_kernel="boxes", blur_border="edge")


def by_hand(raw, crop, number, k, pre):
    """One view after the other, with torchvision's functions."""
    functional = pytest.importorskip("torchvision.transforms.functional")
    draws = augment.draw_colour(k, crop.colour, crop.count, number)
    out = []
    for i, x in enumerate(raw.flatten(0, 1).float() / 255):
        d = [v[i].tolist() for v in draws]
        changes = [getattr(functional, f"adjust_{name}") for name in JITTER]
        for change in d[8] if d[0] else ():
            x = changes[change](x, d[1 + change])
        if d[5]:
            x = functional.rgb_to_grayscale(x, 3)
        if d[6]:
            x = functional.gaussian_blur(x, 2 * blur_radius(d[6]) + 1, [d[6]] * 2)
        if d[7]:
            x = functional.solarize(x, 0.5)
        out.append(functional.normalize(x, list(pre.mean), list(pre.std)))
    return torch.stack(out).view(raw.shape)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(
    "colour",
    [
        COLOUR,
        replace(COLOUR, blur_p=0),
        Colour(grey_p=0.5),
        Colour(solarise_p=1),
        PILLOW,
        replace(COLOUR, blur_p=1, blur_border="zero", blur_radius=4),
    ],
)
def test_compiled_colour_equals_tensors(colour, dtype, two_threads):
    pre, k = preprocess(), key(12)
    plan = [replace(crop, colour=colour) for crop in PLAN]
    crops = [raw.to(dtype) for raw in augment.cut(photographs(12), plan, k)]
    if dtype == torch.float32:  # values that no image should have
        crops[0][0, 0, 0, 0, :4] = torch.tensor([torch.nan, torch.inf, -torch.inf, 300])
    for number, (raw, got) in enumerate(zip(crops, augment.augment(crops, plan, k, pre))):
        draws = augment.draw_colour(k, colour, plan[number].count, number)
        expected = augment._by_tensors(raw.flatten(0, 1), plan[number], number, k, draws, pre)
        torch.testing.assert_close(got.flatten(0, 1), expected, atol=1e-4, rtol=0)


def test_without_numba_views_are_the_same_and_the_plan_says_what_it_costs(monkeypatch):
    pre, k, cpu = preprocess(), key(12), torch.device("cpu")
    crops = augment.cut(photographs(12), PLAN, k)
    assert augment.speed_notes(PLAN, 3, cpu) == []
    expected = augment.augment(crops, PLAN, k, pre)
    monkeypatch.setattr(augment, "compiles", lambda: False)
    monkeypatch.setattr(augment, "_compiled", lambda *_: pytest.fail("by loops"))
    for got, want in zip(augment.augment(crops, PLAN, k, pre), expected, strict=True):
        torch.testing.assert_close(got, want, atol=1e-4, rtol=0)
    [note] = augment.speed_notes(PLAN, 3, cpu)
    assert note.endswith(f"{install_command('fast')} brings it")
    plain = [replace(crop, colour=None) for crop in PLAN]
    assert not augment.speed_notes(plain, 3, cpu)
    assert not augment.speed_notes(PLAN, 4, cpu)
    assert not augment.speed_notes(PLAN, 3, torch.device("cuda"))


@pytest.mark.parametrize("colour", [COLOUR, RANDOM])
@pytest.mark.parametrize("chunk", [1, 3000, 10**9, None])
def test_augment_equals_torchvision(chunk, colour, monkeypatch):
    if chunk:  # of the form with tensors
        monkeypatch.setattr(augment, "_CHUNK", chunk)
        monkeypatch.setattr(augment, "_compiles", lambda *_: False)
    pre, k = preprocess(), key(12)
    plan = [replace(crop, colour=colour) for crop in PLAN]
    crops = augment.cut(photographs(12), plan, k)
    copies = [c.clone() for c in crops]
    for number, got in enumerate(augment.augment(crops, plan, k, pre)):
        expected = by_hand(crops[number], plan[number], number, k, pre)
        # a value that rounding carries across .5 is solarised or not, with the same result within rounding
        torch.testing.assert_close(got, expected, atol=1e-3, rtol=0)
        assert got.dtype == torch.float32
    for before, after in zip(copies, crops):
        assert torch.equal(before, after)  # the input is left alone


@pytest.mark.parametrize("colour", [COLOUR, PILLOW])
def test_augment_depends_on_the_key_alone(colour):
    images, pre = photographs(), preprocess()
    plan = [replace(crop, colour=colour, resample="bilinear") for crop in PLAN]
    whole = augment.augment(augment.cut(images, plan, key(6)), plan, key(6), pre)
    some = np.array([4, 1])
    k = Key(1, np.zeros(2, int), some)
    part = augment.augment(augment.cut([images[i] for i in some], plan, k), plan, k, pre)
    for a, b in zip(whole, part):
        torch.testing.assert_close(a[some], b, atol=1e-5, rtol=0)


@pytest.mark.parametrize("compiles", [True, False])
def test_blur_equals_pillows(compiles, monkeypatch):
    """Up to Pillow's rounding in each of its six passes; a Gaussian with reflected borders is far off."""
    image_module = pytest.importorskip("PIL.Image")
    image_filter = pytest.importorskip("PIL.ImageFilter")
    monkeypatch.setattr(augment, "_compiles", lambda *_: compiles)
    colour, pre, k = Colour(blur_p=1, blur_kernel="boxes", blur_border="edge"), preprocess(), key(30)
    raw = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (30, 1, 3, 24, 18), np.uint8))
    sigma, worst = augment.draw_colour(k, colour, 1, 0).sigma, {}
    for kernel, border in (("boxes", "edge"), ("gaussian", "reflect")):
        plan = [Crop(size=18, colour=replace(colour, blur_kernel=kernel, blur_border=border))]
        (got,) = augment.augment([raw], plan, k, pre)
        got = (got[:, 0] * 0.25 + torch.tensor(pre.mean)[:, None, None]) * 255
        expected = [
            np.asarray(image_module.fromarray(x).filter(image_filter.GaussianBlur(float(s))))
            for x, s in zip(raw[:, 0].permute(0, 2, 3, 1).numpy(), sigma)
        ]
        difference = (got - torch.from_numpy(np.stack(expected)).permute(0, 3, 1, 2)).abs()
        worst[kernel] = float(difference.max())
    assert worst["boxes"] < 4
    assert worst["gaussian"] > 20


def test_every_order_of_jitter_is_as_likely():
    orders = augment.draw_colour(key(3000), RANDOM, 2, 1).order
    found, counts = np.unique(orders, axis=0, return_counts=True)
    assert found.tolist() == [list(order) for order in itertools.permutations(range(4))]
    assert abs(counts - 250).max() < 4.5 * 250**0.5
    first, second = orders[::2], orders[1::2]  # of the two views of an image
    assert (first == second).all(1).mean() < 0.07
    fixed = augment.draw_colour(key(3000), COLOUR, 2, 1)
    assert (fixed.order == np.arange(4)).all()
    np.testing.assert_array_equal(fixed.hue, augment.draw_colour(key(3000), RANDOM, 2, 1).hue)


@pytest.mark.parametrize("resample", ["bicubic", "bilinear"])
def test_crops_are_resampled_as_the_plan_says(resample):
    """As torchvision's `resized_crop` of images of 8 bits, which is Pillow's, by each of the three ways."""
    functional = pytest.importorskip("torchvision.transforms.functional")
    image_module = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (50, 40, 3), dtype=np.uint8) for _ in range(4)]
    plan, k = [Crop(size=16, scale=(0.3, 1.0), flip_p=0, resample=resample)], key(4)
    tensors = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    ways = (
        augment.cut(images, plan, k)[0],
        augment.cut_each(list(tensors), plan, k)[0],
        augment.cut_batch(tensors, plan, k)[0].round().clamp(0, 255),
    )
    boxes = augment.draw_boxes(k, plan[0], 0, np.full(4, 50), np.full(4, 40))[:, 0].tolist()
    mode = functional.InterpolationMode(resample)
    expected = torch.from_numpy(
        np.stack(
            [
                np.asarray(functional.resized_crop(image_module.fromarray(image), *box, [16, 16], mode))
                for image, box in zip(images, boxes)
            ]
        )
    )
    for found in ways:
        difference = (found[:, 0].permute(0, 2, 3, 1).float() - expected.float()).abs()
        assert difference.max() <= 2
        assert difference.mean() < 0.4


def test_draws():
    c = replace(COLOUR, brightness=1.5)
    draws = augment.draw_colour(key(4000), c, 2, 0)
    assert len(draws.hue) == 8000
    assert abs(draws.jitter.mean() - 0.8) < 0.02
    assert draws.brightness.min() >= 0
    assert draws.brightness.max() <= 2.5
    assert draws.contrast.min() >= 0.6
    assert draws.contrast.max() <= 1.4
    assert abs(draws.hue).max() <= 0.1
    assert abs((draws.sigma > 0).mean() - 0.5) < 0.02
    assert abs(draws.solarise.mean() - 0.3) < 0.02
    low, high = c.blur_sigma
    ranges = ((draws.sigma[draws.sigma > 0], low, high), (draws.contrast, 0.6, 1.4), (draws.hue, -0.1, 0.1))
    for values, least, most in ranges:  # uniform over its whole range
        span = most - least
        assert least - 1e-6 <= values.min() < least + 0.02 * span
        assert most - 0.02 * span < values.max() <= most + 1e-6
        assert abs(values.mean() - (least + most) / 2) < 0.02 * span


@pytest.mark.parametrize("channels", [1, 2, 6, 13])
def test_any_number_of_channels(channels):
    images = [image * 100 for image in photographs(4, channels, np.float32)]
    pre = preprocess(channels, low=500.0, high=20_000.0)
    for got in augment.augment(augment.cut(images, PLAN, key(4)), PLAN, key(4), pre):
        assert got.isfinite().all()
        values = got * 0.25 + torch.tensor(pre.mean)[:, None, None]
        assert values.min() > -1e-5
        assert values.max() < 1 + 1e-5
        assert values.std() > 0.05


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 50, 3), (3, 2, 1)])
def test_tiny_and_constant_images(shape):
    k = key(3)
    crops = augment.cut([np.full(shape, 77, np.uint8)] * 3, PLAN, k)
    assert all((c == 77).all() for c in crops)
    for got in augment.augment(crops, PLAN, k, preprocess(shape[2])):
        assert got.isfinite().all()


def test_not_a_number_becomes_the_lowest_value():
    image = np.full((8, 8, 2), 5.0, np.float32)
    image[2, 2] = np.nan
    got = augment.augment(augment.cut([image], PLAN, key(1)), PLAN, key(1), preprocess(2, 0, 10))
    assert all(g.isfinite().all() for g in got)


def test_a_plan_without_colour_only_normalises():
    plan, pre = (Crop(size=16),), preprocess()
    crops = augment.cut(photographs(), plan, key(6))
    (got,) = augment.augment(crops, plan, key(6), pre)
    torch.testing.assert_close(got, pre.normalise(crops[0] / 255.0))


def test_describe_names_what_is_left_out():
    rgb, grey = augment.describe(PLAN, 3), augment.describe(PLAN, 1)
    assert len(rgb) == 2
    assert "left out" not in rgb[0]
    assert "hue 0.1 (p 0.8)" in rgb[0]
    assert "left out on 1 channel: saturation 0.2 (p 0.8), hue 0.1 (p 0.8), grey 0.2" in grey[0]
    assert "no other change" in augment.describe([Crop(size=8, flip_p=0)], 3)[0]
