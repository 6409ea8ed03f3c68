"""`--decode gpu`: crops as without it, whoever decodes; here omma itself, or TorchCodec on the CPU."""

import io
import re
import sys
import tarfile
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from omma.core.errors import install_command
from omma.core.protocols import Crop
from omma.data.batches import augment, gpu_jpeg, loader
from omma.data.sources import collection
from omma.data.sources.decode import decode, plain_jpeg

PLAN = (Crop(size=32, scale=(0.4, 1.0)), Crop(size=24, count=2, scale=(0.1, 0.4)))


def picture(i, h=44, w=52):
    """Smooth, so that resampling does not overshoot."""
    y, x = np.mgrid[:h, :w]
    waves = [np.sin(y / (9 + c) + i) * np.cos(x / (7 + c) - i) for c in range(3)]
    return (128 + 90 * np.stack(waves, -1)).astype(np.uint8)


def encoded(pixels, kind="JPEG", mode="RGB", **options):
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind, **options)
    return file.getvalue()


def turned(orientation):
    exif = Image.Exif()
    exif[274] = orientation
    return exif


ODD = {
    "cmyk": encoded(picture(1), mode="CMYK"),
    "cut off": encoded(picture(2))[:-200],
    "bytes after the end": encoded(picture(3)) + b"\0\0",
    "a PNG": encoded(picture(4), "PNG"),
    "12 bits": encoded(picture(5)).replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c"),
    "no header": b"\xff\xd8\xff\xd9",
    "a bomb": encoded(picture(6)).replace(b"\x08\x00\x2c\x00\x34", b"\x08\xff\xff\xff\xff"),
    "nothing": b"",
}
PLAIN = {
    "progressive": encoded(picture(7), progressive=True),
    "grey": encoded(picture(8), mode="L"),
    "upside down": encoded(picture(9), exif=turned(6)),
    "all colour": encoded(picture(10), subsampling=0),
}


@pytest.fixture
def folder(tmp_path):
    """JPEGs of three sizes, and every other kind of file that still is an image."""
    for i in range(9):
        (tmp_path / f"{i}.jpg").write_bytes(encoded(picture(i, 40 + i % 3, 50 - i % 2), quality=95))
    for name in ("cmyk", "bytes after the end", "a PNG"):
        (tmp_path / f"{name}.jpg").write_bytes(ODD[name])
    for name, data in PLAIN.items():
        (tmp_path / f"{name}.jpg").write_bytes(data)
    return tmp_path


def by_cpu(files, grey):
    """omma's own decoder in the GPU's place."""
    got = [decode(file.numpy().tobytes(), 1 if grey else None) for file in files]
    return [torch.from_numpy(image).permute(2, 0, 1) for image in got]


def take(images, steps=3, batch=8, plan=PLAN, **options):
    with loader.stream(images, plan, batch, 5, in_memory=False, **{"workers": 0} | options) as stream:
        return [next(stream) for _ in range(steps)], dict(stream.bad)


def assert_alike(some, others, atol):
    for a, b in zip(some, others, strict=True):
        np.testing.assert_array_equal(a.key.index, b.key.index)
        assert a.read.tolist() == b.read.tolist()
        for x, y in zip(a.crops, b.crops, strict=True):
            assert x.dtype == y.dtype
            assert x.shape == y.shape
            assert (x.float() - y.float()).abs().max() <= atol


# ---------------------------------------------------------------- which files
@pytest.mark.parametrize("name", ODD)
def test_what_is_not_for_every_decoder(name):
    assert not plain_jpeg(ODD[name])


@pytest.mark.parametrize("name", PLAIN)
def test_what_is(name):
    assert plain_jpeg(PLAIN[name])


def test_every_store_gives_the_bytes_that_it_decodes(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("archives")
    files = sorted(folder.iterdir())
    with zipfile.ZipFile(other / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            archive.write(file, file.name)
    for shard in ("a.tar", "s/0.tar"):
        (other / shard).parent.mkdir(exist_ok=True)
        with tarfile.open(other / shard, "w") as archive:
            for file in files:
                archive.add(file, file.name.replace(" ", "_"))
    for source in (folder, other / "a.zip", other / "a.tar", other / "s"):
        images = collection.open_images(source)
        assert len(images) == len(files)
        for i in range(len(images)):
            np.testing.assert_array_equal(decode(images.content(i), 3), images.read(i))


# ---------------------------------------------------------------- the stream
@pytest.mark.parametrize("channels", [1, 3])
def test_crops_are_those_of_the_workers_within_rounding(folder, channels):
    images = collection.open_images(folder)
    images.channels = channels
    usual, others = take(images), take(images, decode=by_cpu)
    assert_alike(usual[0], others[0], atol=2)
    assert usual[0][0].crops[0].dtype == torch.uint8
    alone = {"steps": len(images), "batch": 1}
    assert_alike(take(images, **alone)[0], take(images, **alone, decode=by_cpu)[0], atol=2)
    assert usual[1] == others[1] == {}


def test_workers_and_parts_change_nothing(folder, monkeypatch):
    monkeypatch.setattr(loader, "_CHUNK", 3)
    images = collection.open_images(folder)
    assert_alike(take(images, decode=by_cpu)[0], take(images, decode=by_cpu, workers=2)[0], atol=0)


def test_large_images_are_cut_at_the_same_place(tmp_path):
    """Workers decode them at reduced scale; a pixel of that is at most 8 of 480."""
    for i in range(4):
        y, x = np.mgrid[:360, :480]
        pixels = np.stack([x * 255 / 479, y * 255 / 359, 0 * x], -1).astype(np.uint8)
        (tmp_path / f"{i}.jpg").write_bytes(encoded(pixels, quality=95))
    images = collection.open_images(tmp_path)
    plan = (Crop(size=16, scale=(0.2, 1.0)),)
    assert images.read(0, augment.at_least(plan)).shape[0] < 60
    assert_alike(
        take(images, batch=4, plan=plan)[0], take(images, batch=4, plan=plan, decode=by_cpu)[0], atol=9
    )


def test_bad_images_are_listed_as_ever(folder):
    (folder / "3.jpg").write_bytes(ODD["cut off"])
    (folder / "5.jpg").write_bytes(b"")
    images = collection.open_images(folder)
    usual, others = take(images, steps=4), take(images, steps=4, decode=by_cpu, workers=1)
    assert len(usual[1]) == 2
    assert usual[1] == others[1]
    assert_alike(usual[0], others[0], atol=2)


def test_what_the_decoder_refuses_is_decoded_as_without_it(folder):
    """One file of a list is enough for it to refuse all: the others are decoded by it nevertheless."""
    refused, asked = (folder / "4.jpg").read_bytes(), []

    def fussy(files, grey):
        if any(file.numpy().tobytes() == refused for file in files):
            raise RuntimeError("nvjpegDecode failed: 2")
        asked.append(len(files))
        return by_cpu(files, grey)

    images = collection.open_images(folder)
    assert_alike(take(images, batch=16)[0], take(images, batch=16, decode=fussy)[0], atol=2)
    assert sum(asked) == 3 * (9 + len(PLAIN) - 1)


def test_what_nobody_decodes_is_bad(folder):
    """Damage that only decoding finds, met in the training process."""
    damaged = bytearray(encoded(picture(4), quality=95))
    damaged[-300:-200] = b"\xff\xc4" * 50
    assert plain_jpeg(bytes(damaged))
    (folder / "4.jpg").write_bytes(damaged)

    def strict(files, grey):
        try:
            return by_cpu(files, grey)
        except ValueError as error:
            raise RuntimeError(str(error)) from None

    images = collection.open_images(folder)
    usual, others = take(images, steps=4), take(images, steps=4, decode=strict)
    assert len(usual[1]) == 1
    assert usual[1] == others[1]
    assert_alike(usual[0], others[0], atol=2)


# ---------------------------------------------------------------- decoders
def test_jpegs_are_looked_for(folder, tmp_path_factory):
    assert gpu_jpeg.any_plain(collection.open_images(folder))
    other = tmp_path_factory.mktemp("other")
    (other / "a.png").write_bytes(ODD["a PNG"])
    assert not gpu_jpeg.any_plain(collection.open_images(other))
    assert not gpu_jpeg.any_plain(collection.ArrayImages(np.zeros((2, 200, 200, 3), np.uint8)))


def test_what_is_lacking_is_said_in_a_line(monkeypatch):
    with pytest.raises(ValueError, match="NVIDIA GPU, and this run is on cpu"):
        gpu_jpeg.decoder(torch.device("cpu"))
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    monkeypatch.delitem(sys.modules, "torchcodec.decoders", raising=False)
    with pytest.raises(ValueError, match=re.escape(install_command("torchcodec"))):
        gpu_jpeg.decoder(torch.device("cuda"))
    monkeypatch.setitem(sys.modules, "torchcodec", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", SimpleNamespace())
    with pytest.raises(ValueError, match=r"cannot be used.*0\.17 or later"):
        gpu_jpeg.decoder(torch.device("cuda"))

    def decode_jpeg(files, mode, device):
        raise RuntimeError("not compiled with nvJPEG\nsupport")

    monkeypatch.setitem(sys.modules, "torchcodec.decoders", SimpleNamespace(decode_jpeg=decode_jpeg))
    with pytest.raises(ValueError, match=r"cuda decodes no JPEG \(not compiled with nvJPEG support"):
        gpu_jpeg.decoder(torch.device("cuda"))


@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_torchcodec(folder, device, channels):
    """Its CPU decoder is libjpeg too; nvJPEG's inverse transform and chroma may differ by some levels."""
    pytest.importorskip("torchcodec.decoders", reason="torchcodec is not installed")
    images, atol = collection.open_images(folder), 2 if device == "cpu" else 12
    images.channels = channels
    place = torch.device(device)
    by = gpu_jpeg.by_torchcodec(place) if device == "cpu" else gpu_jpeg.decoder(place)
    usual, others = take(images), take(images, decode=by, device=device)
    assert all(crop.device.type == device for loaded in others[0] for crop in loaded.crops)
    assert_alike(usual[0], [got._replace(crops=tuple(c.cpu() for c in got.crops)) for got in others[0]], atol)
    for name, data in PLAIN.items():
        mine = decode(data, 1 if channels == 1 else None)
        (theirs,) = by([torch.frombuffer(bytearray(data), dtype=torch.uint8)], channels == 1)
        assert tuple(theirs.shape) == (mine.shape[2], *mine.shape[:2]), name
