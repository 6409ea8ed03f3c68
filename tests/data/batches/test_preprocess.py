"""Measuring, applying, and surviving bad, constant and odd images."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from omma.core.protocols import BadImage
from omma.data.batches import preprocess


class Pictures:
    """A list of arrays; None is a bad one."""

    labels = None
    classes = ()
    splits = None

    def __init__(self, arrays):
        self.arrays = arrays
        self.channels = next((a.shape[2] for a in arrays if a is not None), 3)

    def __len__(self):
        return len(self.arrays)

    def path(self, i):
        return f"{i}.png"

    def read(self, i, at_least=None):
        if self.arrays[i] is None:
            raise BadImage("truncated")
        return self.arrays[i]

    def subset(self, indices):
        return Pictures([self.arrays[i] for i in indices])


def bytes_(n=5, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    return [(rng.random((20 + i, 33, channels)) * 200).astype(np.uint8) for i in range(n)]


def test_rgb_is_imagenet():
    got = preprocess.measure(Pictures([*bytes_(), None]), 16)
    assert got.mean == preprocess.IMAGENET_MEAN
    assert got.std == preprocess.IMAGENET_STD
    assert got.low == (0, 0, 0)
    assert got.high == (255, 255, 255)


def test_other_bytes_are_measured():
    images = bytes_(channels=1)
    got = preprocess.measure(Pictures(images), 16)
    assert (got.low, got.high) == ((0.0,), (255.0,))
    values = np.concatenate([i.ravel() for i in images]) / 255
    assert got.mean[0] == pytest.approx(values.mean(), abs=1e-6)
    assert got.std[0] == pytest.approx(values.std(), abs=1e-6)


def test_raw_values_are_ranged_by_percentiles():
    rng = np.random.default_rng(0)
    images = [(rng.random((50, 60, 2)) * [1000, 60_000]).astype(np.float32) for _ in range(4)]
    images[0][0, 0] = 1e9  # a hot pixel
    images[1][0, 0] = np.nan
    got = preprocess.measure(Pictures([None, *images]), 16)
    np.testing.assert_allclose(got.low, (0, 0), atol=100)
    np.testing.assert_allclose(got.high, (1000, 60_000), rtol=0.01)
    np.testing.assert_allclose(got.mean, 0.5, atol=0.01)
    np.testing.assert_allclose(got.std, 12**-0.5, atol=0.01)


def test_constant_images():
    got = preprocess.measure(Pictures([np.full((5, 5, 2), 7.0, np.float32)] * 2), 4)
    x = preprocess.apply(np.full((5, 5, 2), 7.0, np.float32), got)
    assert x.isfinite().all()
    assert (x == 0).all()


def test_nothing_readable():
    with pytest.raises(ValueError, match=r"none of 2 images can be read.*truncated"):
        preprocess.measure(Pictures([None, None]), 8)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("shape", [(20, 33), (33, 20), (16, 16), (1, 1), (3, 40)])
def test_apply_resizes_the_shorter_side_and_cuts_the_centre(channels, shape):
    rng = np.random.default_rng(0)
    # no overshoot beyond 0..255, which the 8-bit kernel clips between its two passes
    image = (80 + rng.random((*shape, channels)) * 90).astype(np.uint8)
    pre = preprocess.measure(Pictures([image]), 16)
    got = preprocess.apply(image, pre)
    h, w = shape
    short = min(h, w)
    x = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    size = (int(16 * h / short), int(16 * w / short))
    x = F.interpolate(x, size=size, mode="bicubic", antialias=True)[0].clamp(0, 1) if size != shape else x[0]
    top, left = round((size[0] - 16) / 2), round((size[1] - 16) / 2)
    expected = pre.normalise(x[:, top : top + 16, left : left + 16])
    assert got.shape == (channels, 16, 16)
    # three channels are resized in 8 bits
    assert ((got - expected).abs() * torch.tensor(pre.std)[:, None, None]).max() < 1.6 / 255


def test_crop_share():
    pre = preprocess.measure(Pictures(bytes_()), 16, crop_share=0.5)
    assert preprocess.shorter_side(pre) == 32
    assert preprocess.apply(bytes_()[0], pre).shape == (3, 16, 16)


def test_wrong_channels():
    with pytest.raises(ValueError, match="1 channels, the model expects 3"):
        preprocess.apply(bytes_(channels=1)[0], preprocess.measure(Pictures(bytes_()), 8))


@pytest.mark.parametrize("threads", [1, 3])
def test_load_batch_lists_the_bad(threads):
    images = Pictures([*bytes_(3), None, *bytes_(2)])
    pre = preprocess.measure(images, 8)
    batch, good, bad = preprocess.load_batch(images, np.array([5, 3, 0]), pre, threads)
    assert good.tolist() == [True, False, True]
    assert bad == [(3, "truncated")]
    torch.testing.assert_close(batch[0], preprocess.apply(images.arrays[5], pre))
    assert (batch[1] == 0).all()


def test_as_dict_survives_json():
    pre = preprocess.measure(Pictures(bytes_(channels=2)), 8)
    assert preprocess.from_dict(json.loads(json.dumps(preprocess.as_dict(pre)))) == pre
    with pytest.raises(ValueError, match="newer"):
        preprocess.from_dict({**preprocess.as_dict(pre), "gamma": 2})


def test_a_strip_that_would_fill_the_memory_is_refused():
    """One pixel by 100,000 is a file of a kilobyte, and 224 by 22 million when it is resized."""
    images = Pictures([np.zeros((100_000, 1, 3), np.uint8)])
    pre = preprocess.measure(Pictures(bytes_()), 224)
    _, good, bad = preprocess.load_batch(images, np.array([0]), pre)
    assert not good.any()
    assert "too narrow" in bad[0][1]
