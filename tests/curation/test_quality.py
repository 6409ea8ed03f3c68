"""Faults that pixels show: planted ones are found in collections of every kind, and clean ones stay clean."""

import io
import math

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from omma.curation import quality
from omma.data.sources.collection import ArrayImages, open_images


def natural(n, shape=(48, 48, 3), seed=0):
    """Images with a spectrum like that of photographs, floats in [0, 1]."""
    rng = np.random.default_rng(seed)
    height, width, channels = shape
    away = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    away[0, 0] = 1
    images = []
    for _ in range(n):
        noise = np.fft.fft2(rng.normal(size=(height, width, channels)), axes=(0, 1))
        field = np.fft.ifft2(noise / away[..., None], axes=(0, 1)).real
        field = (field - field.mean((0, 1))) / field.std((0, 1))
        images.append((0.5 + rng.uniform(0.1, 0.2) * field + rng.uniform(-0.1, 0.1)).clip(0, 1))
    return np.stack(images)


SCALES = {"uint8": 255, "uint16": 3000, "float32": 7.5}  # 16-bit cameras fill a part of their range


def as_type(values, kind):
    scaled = values * SCALES[kind]
    return scaled.round().astype(kind) if kind != "float32" else scaled.astype(kind)


def kinds(judged):
    return {(each.row, each.kind) for each in judged.findings}


def judge(images):
    return quality.judge(quality.measure(images))


@pytest.mark.parametrize("channels", [1, 3, 6, 13])
@pytest.mark.parametrize("kind", list(SCALES))
def test_planted_faults_are_found_and_nothing_else(channels, kind):
    values = natural(60, (48, 48, channels))
    values[3] = 0.3  # constant
    values[7] = 0.01 + 0.02 * values[7]
    values[11] = 0.97 + 0.02 * values[11]
    values[19] = ndimage.gaussian_filter(values[19], (2, 2, 0))
    found = judge(ArrayImages(as_type(values, kind)))
    # an image of a hundredth of the range has next to nothing in it, too
    exposed = {(row, name) for row, name in kinds(found) if row in (7, 11)}
    assert {row for row, _ in exposed} == {7, 11}
    assert {name for _, name in exposed} <= {"blank", "dark", "bright"}
    assert kinds(found) - exposed == {(3, "blank"), (19, "blurred")}


def test_dark_and_bright_images_with_something_in_them_are_no_blanks():
    values = natural(60)
    values[5] = 0.1 * values[5]
    values[6] = 0.9 + 0.1 * (values[6] - values[6].min()) / np.ptp(values[6])
    assert kinds(judge(ArrayImages(as_type(values, "uint8")))) == {(5, "dark"), (6, "bright")}


def test_what_is_usual_in_a_collection_is_no_fault():
    dark = as_type(0.1 * natural(60), "uint8")
    smooth = as_type(ndimage.gaussian_filter(natural(60), (0, 2, 2, 0)), "uint8")
    for collection in (dark, smooth):
        assert kinds(judge(ArrayImages(collection))) == set()


def test_noise_does_not_hide_a_blank_image():
    values = as_type(natural(24, (256, 256, 1)), "uint8")
    values[2] = np.random.default_rng(0).normal(100, 6, values[2].shape).round()
    assert (2, "blank") in kinds(judge(ArrayImages(values)))


@pytest.mark.parametrize("wavelength", [4, 7, 16])
def test_the_sharpness_of_a_wave_has_a_closed_form(wavelength):
    x = np.arange(1120)
    wave = np.sin(2 * math.pi * (x + 0.37) / wavelength)
    image = np.repeat(wave[None], 40, axis=0)[..., None].astype(np.float32)
    crest = np.abs(wave).max()
    expected = math.sqrt(2) * crest * (2 - 2 * math.cos(2 * math.pi / wavelength))
    assert quality.sharpness(image) == pytest.approx(expected, rel=0.03)
    assert quality.sharpness(1000 + 5 * image) == pytest.approx(quality.sharpness(image), rel=1e-3)


def test_constant_and_tiny_images_have_no_sharpness():
    assert quality.sharpness(np.full((9, 9, 3), 7.0, np.float32)) == 0
    assert quality.sharpness(np.arange(8, dtype=np.float32).reshape(2, 4, 1)) == 0


def test_blur_is_judged_where_it_is_seen_not_at_full_size():
    image = np.zeros((1024, 1500, 3), np.float32)
    small = quality.reduced(image)
    assert small.shape == (256, 375, 3)
    assert quality.reduced(small[:100]).shape == (100, 375, 3)


def jpeg(values, name, folder):
    Image.fromarray((255 * values).astype(np.uint8)).save(folder / name, quality=95)


def test_odd_sizes_are_those_of_the_files_not_of_reduced_images(tmp_path):
    different = natural(3, (600, 800, 3))
    for number in range(24):
        picture = np.roll(different[number % 3], 30 * number, axis=1)
        portrait = picture.transpose(1, 0, 2) if number % 4 == 0 else picture  # turned: not odd
        jpeg(portrait, f"{number:02}.jpg", tmp_path)
    jpeg(natural(1, (60, 80, 3))[0], "90.jpg", tmp_path)
    jpeg(natural(1, (300, 1500, 3))[0], "91.jpg", tmp_path)
    images = open_images(tmp_path)
    found = judge(images)
    assert {(images.path(row), kind) for row, kind in kinds(found)} == {
        ("90.jpg", "odd-sized"),
        ("91.jpg", "odd-sized"),
    }
    assert {each.detail.split(" px")[0] for each in found.findings} == {"80 x 60", "1500 x 300"}


def test_broken_files_are_found_with_their_reason(tmp_path):
    for number, picture in enumerate(natural(22)):
        jpeg(picture, f"{number:02}.jpg", tmp_path)
    whole = (tmp_path / "03.jpg").read_bytes()
    (tmp_path / "03.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "05.jpg").write_bytes(b"")
    images = open_images(tmp_path)
    found = [each for each in judge(images).findings if each.kind == "broken"]
    assert [images.path(each.row) for each in found] == ["03.jpg", "05.jpg"]
    assert found[1].detail == "empty file"


def test_a_few_images_are_judged_by_what_needs_no_comparison():
    values = as_type(natural(5), "uint8")
    values[1] = 255
    judged = judge(ArrayImages(values))
    assert kinds(judged) == {(1, "blank")}
    assert "too few" in judged.notes[0]


def test_thresholds_are_stated_for_each_fault():
    judged = judge(ArrayImages(as_type(natural(30), "uint8")))
    assert set(judged.thresholds) == {"blank", "dark", "bright", "blurred", "odd-sized"}
    assert all(any(c.isdigit() for c in text) for text in judged.thresholds.values())


def test_a_subset_can_be_measured_and_progress_counts_it():
    seen = []
    images = ArrayImages(as_type(natural(40), "uint8"))
    found = quality.measure(images, np.array([3, 1, 39]), lambda done, total: seen.append((done, total)))
    assert sorted(found.rows.tolist()) == [1, 3, 39]
    assert seen[-1] == (3, 3)


def test_an_unreadable_buffer_is_not_taken_for_a_jpeg():
    from omma.data.sources.decode import jpeg_size

    stream = io.BytesIO()
    Image.new("RGB", (30, 20)).save(stream, "JPEG")
    assert jpeg_size(stream.getvalue()) == (20, 30)
    assert jpeg_size(stream.getvalue()[:6]) is None
    assert jpeg_size(b"GIF89a") is None
