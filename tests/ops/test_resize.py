"""Cutting and blurring against torchvision, and on sizes that it refuses."""

import numpy as np
import pytest
import torch

from omma.ops import resize

BOXES = torch.tensor([[0, 0, 40, 50], [3, 5, 20, 31], [39, 49, 1, 1], [10, 2, 30, 9], [0, 0, 40, 2]])


def pictures(b=5, c=3, h=40, w=50):
    return torch.rand(b, c, h, w, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("filter", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [1, 13, 40, 64])
def test_crop_resize_equals_torchvision(filter, size):
    functional = pytest.importorskip("torchvision.transforms.functional")
    x = pictures()
    flip = torch.tensor([True, False, True, True, False])
    mode = functional.InterpolationMode(filter)
    expected = []
    for image, box, mirrored in zip(x, BOXES.tolist(), flip):
        cut = functional.resized_crop(image, *box, [size, size], mode, antialias=True)
        expected.append(cut.flip(-1) if mirrored else cut)
    got = resize.crop_resize(x, BOXES, size, filter, flip)
    torch.testing.assert_close(got, torch.stack(expected), atol=1e-4, rtol=0)


def test_crop_resize_of_bytes_keeps_their_scale():
    x = (pictures(c=2) * 255).to(torch.uint8)
    torch.testing.assert_close(resize.crop_resize(x, BOXES, 8), resize.crop_resize(x.float(), BOXES, 8))


@pytest.mark.parametrize("channels", [1, 2, 3, 6])
def test_one_image_of_bytes_is_within_rounding(channels):
    x = (pictures(1, channels) * 255).to(torch.uint8)
    array = np.ascontiguousarray(x[0].permute(1, 2, 0).numpy())
    for box in BOXES.tolist():
        got = resize.crop_resize_one(array, tuple(box), 16)
        expected = resize.crop_resize(x, torch.tensor([box]), 16)
        assert got.dtype == torch.uint8
        assert got.shape == (1, channels, 16, 16)
        assert (got.float() - expected).abs().max() <= 1.01


def test_one_image_of_raw_values():
    x = pictures(1, 4) * 60_000
    got = resize.crop_resize_one(x[0].permute(1, 2, 0).numpy(), (3, 5, 20, 31), 16, "bicubic")
    expected = resize.crop_resize(x, BOXES[1:2], 16, "bicubic")
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1)


def test_each_box_equals_the_batch_also_where_the_kernel_would_not_do(monkeypatch):
    x = pictures()
    for steep in (resize.STEEP, 1):
        monkeypatch.setattr(resize, "STEEP", steep)
        got = [
            resize.crop_resize_each(x[i : i + 1], box, 13, "bicubic") for i, box in enumerate(BOXES.tolist())
        ]
        torch.testing.assert_close(
            torch.cat(got), resize.crop_resize(x, BOXES, 13, "bicubic"), atol=1e-5, rtol=0
        )


def test_blur_equals_torchvision():
    functional = pytest.importorskip("torchvision.transforms.functional")
    x, sigma = pictures(), np.array([0.1, 0.5, 1.0, 1.37, 2.0], dtype=np.float32)
    expected = [
        functional.gaussian_blur(image, 2 * resize.blur_radius(s) + 1, [s, s])
        for image, s in zip(x, sigma.tolist())
    ]
    got = resize.gaussian_blur(x, sigma)
    torch.testing.assert_close(got, torch.stack(expected), atol=1e-5, rtol=0)
    # the scalar path, and the same image in another company
    for i in range(len(x)):
        alone = resize.gaussian_blur(x[i : i + 1], sigma[i : i + 1])
        torch.testing.assert_close(alone[0], got[i], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("h", "w"), [(1, 1), (2, 3), (5, 1), (7, 30)])
def test_blur_of_images_smaller_than_the_kernel(h, w):
    got = resize.gaussian_blur(torch.full((2, 3, h, w), 0.25), np.array([0.5, 4.0]))
    torch.testing.assert_close(got, torch.full((2, 3, h, w), 0.25))
    # reflecting again and again is what NumPy does
    row = np.arange(w, dtype=np.float32)
    at = resize._reflected(w, 6, torch.device("cpu")).numpy()
    np.testing.assert_array_equal(row[at], np.pad(row, 6, mode="reflect"))
