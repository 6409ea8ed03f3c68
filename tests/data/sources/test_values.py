"""Images of 8 bits, 16 bits and floats mean the same to a model, whatever type it was made for."""

import numpy as np
import pytest
import torch
from PIL import Image

from omma import backbones
from omma.core.protocols import Crop, Preprocess
from omma.data.batches import gpu_jpeg, loader, preprocess
from omma.data.sources.collection import ArrayImages, open_images
from omma.data.sources.values import in_units, ranges, scaling_notes
from omma.weights import Model

_ANGLES = np.arange(24)[:, None] * np.linspace(0.1, 0.4, 24) + np.arange(6)[:, None, None]
GREY = np.rint(127.5 * (1 + np.sin(_ANGLES))).astype(np.uint8)[..., None]  # smooth, 0 to 255, six phases
KINDS = {
    "uint8": GREY,
    "uint16": GREY.astype(np.uint16) * 257,
    "float": GREY / np.float32(255),
}


def made_for(full_scale: float, channels: int = 1) -> Preprocess:
    zeros, ones = (0.0,) * channels, (1.0,) * channels
    high = (full_scale,) * channels
    return Preprocess(
        size=16, channels=channels, low=zeros, high=high, mean=zeros, std=ones, full_scale=full_scale
    )


class Mixed(ArrayImages):
    """The same six images in three types in turn."""

    def __init__(self, values):
        super().__init__(values)
        self.ranges = None  # sampled through `read`

    def read(self, i, at_least=None):
        return list(KINDS.values())[i % 3][i]


@pytest.mark.parametrize("white", [255.0, 65535.0, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_every_type_in_the_units_of_every_other(kind, white):
    images = ArrayImages(KINDS[kind])
    got = in_units(images.read(2), white, images)
    np.testing.assert_allclose(got, GREY[2] * (white / 255), rtol=1e-6)
    assert got.dtype == (np.uint8 if (kind, white) == ("uint8", 255) else np.float32)


def test_raw_values_stay_as_they_are():
    measured = ArrayImages(GREY.astype(np.float32) * 3 - 100)
    np.testing.assert_array_equal(in_units(measured.read(0), 255.0, measured), measured.read(0))
    sixteen = ArrayImages(KINDS["uint16"])
    np.testing.assert_array_equal(in_units(sixteen.read(0), None, sixteen), KINDS["uint16"][0])
    for type_ in (np.int16, np.int32, np.uint32, np.float64):
        integers = ArrayImages(GREY.astype(type_) * 3)
        np.testing.assert_array_equal(in_units(integers.read(0), 255.0, integers), GREY[0] * 3.0)
    mask = ArrayImages(GREY > 99)
    np.testing.assert_array_equal(in_units(mask.read(0), 255.0, mask), (GREY[0] > 99) * 255)


def test_floats_are_judged_by_the_collection_and_not_one_by_one():
    values = KINDS["float"] * np.float32(300)
    values[0] /= 1000  # one image of measurements that happens to lie in [0, 1]
    images = ArrayImages(values)
    np.testing.assert_array_equal(in_units(images.read(0), 255.0, images), values[0])
    values = KINDS["float"].copy()
    values[1, 0, 0] = 1.01  # what a resize leaves
    images = ArrayImages(values)
    assert in_units(images.read(1), 255.0, images).max() == pytest.approx(1.01 * 255)


@pytest.mark.parametrize("white", [255.0, 65535.0, 1.0])
def test_the_same_input_from_every_type(white):
    rows = np.arange(6)
    expected = preprocess.load_batch(ArrayImages(GREY), rows, made_for(255.0))[0]
    assert len(expected.flatten(1).unique(dim=0)) == 6
    for images in [*map(ArrayImages, KINDS.values()), Mixed(GREY)]:
        got, good, _ = preprocess.load_batch(images, rows, made_for(white))
        assert good.all()
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("options", [{"in_memory": True}, {"in_memory": False, "workers": 0}])
def test_training_sees_the_same_crops(options):
    plan = (Crop(size=16, count=2),)

    def crops(images, **more):
        with loader.stream(images, plan, 6, 0, full_scale=255.0, **options | more) as stream:
            return next(stream).crops[0].float()

    expected = crops(ArrayImages(GREY.astype(np.float64)))  # not rounded
    torch.testing.assert_close(crops(ArrayImages(KINDS["uint16"])), expected, atol=0.01, rtol=0)
    torch.testing.assert_close(crops(ArrayImages(KINDS["float"])), expected, atol=0.01, rtol=0)
    mixed = crops(Mixed(GREY), in_memory=False, workers=0)
    # bytes are rounded and clipped after each pass
    torch.testing.assert_close(mixed.clamp(0, 255), expected.clamp(0, 255), atol=2.5, rtol=0)


def test_jpegs_decoded_on_the_device_are_in_the_units_of_the_others(tmp_path):
    flat = np.full((24, 24), 64, np.uint8)
    Image.fromarray(flat).save(tmp_path / "a.jpg")
    Image.fromarray(flat.astype(np.uint16) * 257).save(tmp_path / "b.png")

    def decode(files, grey):
        return [torch.full((1, 24, 24), 64, dtype=torch.uint8) for _ in files]

    for white in (255.0, 65535.0):
        with loader.stream(
            open_images(tmp_path),
            (Crop(size=16),),
            2,
            0,
            in_memory=False,
            workers=0,
            decode=decode,
            full_scale=white,
        ) as stream:
            values = next(stream).crops[0].float()
        torch.testing.assert_close(values, torch.full_like(values, 64 * white / 255), rtol=1e-3, atol=0)
    assert gpu_jpeg.any_plain(open_images(tmp_path))


def test_a_model_is_made_for_the_range_of_its_images():
    def measured(images):
        got = preprocess.measure(images, 16)
        return got.full_scale, got.low, got.high

    assert measured(ArrayImages(GREY)) == (255.0, (0.0,), (255.0,))
    assert measured(Mixed(GREY)) == (255.0, (0.0,), (255.0,))
    twelve = GREY.astype(np.uint16) * 16
    full, low, high = measured(ArrayImages(twelve))
    assert (full, low) == (65535.0, (0.0,))
    assert high[0] == pytest.approx(4080, rel=0.01)
    assert measured(ArrayImages(KINDS["float"]))[0] == 1.0
    assert measured(ArrayImages(GREY.astype(np.float32) * 3))[0] is None
    old = preprocess.as_dict(made_for(255.0))
    assert "full_scale" not in old  # the file is as it was
    assert preprocess.from_dict(preprocess.as_dict(made_for(65535.0))) == made_for(65535.0)
    assert preprocess.from_dict(old).full_scale == 255.0
    assert preprocess.from_dict(old | {"high": [60_000.0]}).full_scale is None


def test_statistics_of_mixed_types_are_those_of_one():
    mixed = Mixed(GREY)
    got, expected = preprocess.measure(mixed, 16), preprocess.measure(ArrayImages(GREY), 16)
    np.testing.assert_allclose(got.mean + got.std, expected.mean + expected.std, rtol=1e-5)


def test_notes_say_what_the_images_hold_and_what_the_model_was_made_for():
    assert scaling_notes(ArrayImages(GREY), made_for(255.0)) == ()
    (line,) = scaling_notes(ArrayImages(KINDS["uint16"]), made_for(255.0))
    assert "16-bit images hold values from 0 to 65,535 of 65,535: scaled by 0.003891" in line
    (line,) = scaling_notes(ArrayImages(GREY.astype(np.uint16) * 16), made_for(255.0))
    assert "from 0 to 4,080 of 65,535, which come as 0 to 15.88, the model was made for 0 to 255" in line
    (line,) = scaling_notes(ArrayImages(GREY.astype(np.float32) * 10), made_for(255.0))
    assert "float images hold values from 0 to 2,550, the model was made for 0 to 255" in line
    assert "cut off" in line


def test_16_bit_files_embed_as_their_8_bit_copies_do(tmp_path):
    """All 16-bit files once came out white: one vector for all of them."""
    torch.manual_seed(0)
    encoder = backbones.build(name="vit-ti/16", image_size=16)
    model = Model(encoder, made_for(255.0, 3))
    for name, values in (("eight", GREY), ("sixteen", KINDS["uint16"])):
        (tmp_path / name).mkdir()
        for i, image in enumerate(values):
            Image.fromarray(image[..., 0]).save(tmp_path / name / f"{i}.png")
    eight, sixteen = (model.embed(open_images(tmp_path / name)) for name in ("eight", "sixteen"))
    assert len(np.unique(sixteen, axis=0)) == 6
    np.testing.assert_allclose(sixteen, eight, atol=0.01)
    paths = model.embed(sorted((tmp_path / "sixteen").iterdir()))
    np.testing.assert_array_equal(paths, sixteen)
    pictures = model.embed([Image.open(path) for path in sorted((tmp_path / "sixteen").iterdir())])
    np.testing.assert_array_equal(pictures, sixteen)
    assert ranges(open_images(tmp_path / "sixteen")).keys() == {"uint16"}  # from the cached listing, too
