"""Cutting and blurring against torchvision, and on sizes that it refuses."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from omma.data.pixels import resize

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


@pytest.mark.parametrize("filter", ["bilinear", "bicubic"])
@pytest.mark.parametrize("channels", [1, 2, 3, 6])
@pytest.mark.parametrize(("h", "w", "size"), [(40, 50, (16, 16)), (40, 50, (37, 90)), (301, 420, (20, 33))])
def test_one_image_of_bytes_is_resized_within_rounding(h, w, size, channels, filter):
    """Steps between two greys, whose results stay in 0..255; enlarged, reduced, at every edge."""
    generator = torch.Generator().manual_seed(0)
    x = 80 + 90 * torch.randint(0, 2, (1, channels, h // 5 + 1, w // 5 + 1), generator=generator)
    x = x.repeat_interleave(5, 2).repeat_interleave(5, 3)[:, :, :h, :w].to(torch.uint8)
    array = np.ascontiguousarray(x[0].permute(1, 2, 0).numpy())
    for i, box in enumerate([*BOXES.tolist(), [0, 0, h, w], [h - 30, w - 20, 30, 20]]):
        out = np.empty((channels, *size), np.uint8)
        resize.cut_into(out, array, box, filter, flip=i % 2 == 1)
        top, left, height, width = box
        part = x[:, :, top : top + height, left : left + width].double()
        exact = F.interpolate(part, size=size, mode=filter, antialias=True)[0]
        if i % 2:
            exact = exact.flip(-1)
        assert (torch.from_numpy(out).double() - exact).abs().max() <= 1.5


@pytest.mark.parametrize("size", [(4, 9), (24, 40), (49, 63)])
@pytest.mark.parametrize("value", [0, 1, 100, 254, 255])
def test_one_image_of_one_colour_keeps_it(value, size):
    out = np.empty((3, *size), np.uint8)
    resize.cut_into(out, np.full((49, 63, 3), value, np.uint8), (0, 0, 49, 63), "bicubic")
    assert (out == value).all()


def test_one_image_of_bytes_much_reduced():
    x = (255 * pictures(1, 3, 100, 400)).to(torch.uint8)
    out = np.empty((3, 50, 5), np.uint8)
    resize.cut_into(out, x[0].permute(1, 2, 0).numpy(), (0, 0, 100, 400), "bicubic")
    exact = F.interpolate(x.double(), size=(50, 5), mode="bicubic", antialias=True)[0].clamp(0, 255)
    assert (torch.from_numpy(out).double() - exact).abs().max() <= 1.5


def test_one_image_of_bytes_among_others_of_more():
    x = np.arange(30 * 40 * 3, dtype=np.uint8).reshape(30, 40, 3)
    bytes_, floats = np.empty((3, 16, 16), np.uint8), np.empty((3, 16, 16), np.float32)
    for flip in (False, True):
        resize.cut_into(bytes_, x[:, ::2], (1, 2, 20, 13), "bicubic", flip)
        resize.cut_into(floats, x[:, ::2], (1, 2, 20, 13), "bicubic", flip)
        assert np.abs(floats - bytes_).max() <= 1
        assert (floats == np.rint(floats)).all()


def test_one_image_of_raw_values():
    x = pictures(1, 4) * 60_000
    got = np.empty((4, 16, 16), np.float32)
    resize.cut_into(got, x[0].permute(1, 2, 0).numpy(), (3, 5, 20, 31), "bicubic")
    expected = resize.crop_resize(x, BOXES[1:2], 16, "bicubic")[0]
    torch.testing.assert_close(torch.from_numpy(got), expected, rtol=1e-4, atol=1)


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
