"""What `Model` takes: every kind of image that users hold, in every mode of torch; wrong ones in one line."""

import io
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import omma
from omma import backbones, weights
from omma.core.protocols import Preprocess
from omma.data.sources.collection import ArrayImages

PREPROCESS = Preprocess(
    size=32, channels=3, low=(0.0,) * 3, high=(255.0,) * 3, mean=(0.5,) * 3, std=(0.25,) * 3, crop_share=0.9
)
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
TENSOR = torch.from_numpy(PIXELS).permute(2, 0, 1)
PICTURE = Image.fromarray(PIXELS)


def close(found, expected):
    """Equal but for rounding: some processors multiply matrices of two images otherwise than of one."""
    return found.shape == expected.shape and np.allclose(found, expected, rtol=1e-4, atol=1e-5)


def encoded(image=PICTURE, **options):
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return weights.Model(backbones.build(name="vit-ti/16", image_size=32, depth=1), PREPROCESS)


@pytest.fixture(scope="module")
def vector(model):
    return model.embed([PIXELS])


@pytest.fixture
def file(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded())
    return tmp_path / "a.png"


KINDS = {
    "path": lambda file: file,
    "text": str,
    "bytes": lambda file: file.read_bytes(),
    "bytearray": lambda file: bytearray(file.read_bytes()),
    "memoryview": lambda file: memoryview(file.read_bytes()),
    "open file": lambda file: io.BytesIO(file.read_bytes()),
    "PIL": lambda file: PICTURE,
    "PIL, not yet decoded": Image.open,
    "array": lambda file: PIXELS,
    "integers": lambda file: PIXELS.astype(np.int64),
    "raw floats": lambda file: PIXELS.astype(np.float32),
    "floats in [0, 1]": lambda file: PIXELS / 255,
    "half floats in [0, 1]": lambda file: (PIXELS / 255).astype(np.float16),
    "array, channels first": lambda file: PIXELS.transpose(2, 0, 1),
    "tensor": lambda file: TENSOR,
    "tensor of floats in [0, 1]": lambda file: TENSOR / 255,
    "bfloat16": lambda file: (TENSOR / 255).bfloat16(),
    "tensor that needs a gradient": lambda file: (TENSOR / 255).requires_grad_(),
    "tensor, channels last": lambda file: torch.from_numpy(PIXELS),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_image_gives_the_same_vector(model, vector, file, kind):
    image = KINDS[kind](file)
    found = model.embed(image)
    assert (found.shape, found.dtype) == (vector.shape, np.float32)
    # 8-bit images are resized by 8-bit arithmetic
    assert np.abs(found - vector).max() < 0.05 * np.abs(vector).max()
    assert close(model.embed([KINDS[kind](file), PIXELS]), np.concatenate([found, vector]))
    prepared = model.preprocess(KINDS[kind](file))
    assert prepared.shape == (1, 3, 32, 32)
    assert np.allclose(model(prepared).pooled.detach().numpy(), found, atol=1e-5)
    assert model.attention(KINDS[kind](file))[0].shape == (1, 3, 5, 5)


def test_batches_lists_generators_and_collections(model, vector):
    batch = np.stack([PIXELS, PIXELS[::-1], PIXELS[:, ::-1]])
    one_by_one = np.concatenate([model.embed(image.copy()) for image in batch])
    for images in (
        batch,
        torch.from_numpy(batch),
        torch.from_numpy(batch).permute(0, 3, 1, 2),
        list(batch),
        tuple(batch),
        (image for image in batch),
        ArrayImages(batch),
        [torch.from_numpy(image.copy()).permute(2, 0, 1)[None] for image in batch],  # batches of one
    ):
        assert np.allclose(model.embed(images, batch=2), one_by_one, atol=1e-5)
    assert model.preprocess(list(batch)).shape == (3, 3, 32, 32)
    assert model.attention(list(batch))[0].shape == (3, 3, 5, 5)
    assert torch.equal(model.attention(model.preprocess(batch))[0], model.attention(batch)[0])  # prepared


def test_nothing_gives_nothing(model):
    for nothing in ([], (), iter(()), np.zeros((0, 8, 8, 3), np.uint8)):
        assert model.embed(nothing).shape == (0, 192)
    assert model.preprocess([]).shape == (0, 3, 32, 32)
    assert model.attention([])[0].shape == (0, 3, 5, 5)


def test_a_generator_is_read_a_batch_at_a_time(model):
    made, read = [], []

    def images():
        for i in range(6):
            made.append(i)
            yield PIXELS

    for batch in model.preprocess.batches(images(), batch=2, threads=1):
        read.append((len(batch), len(made)))
    assert read == [(2, 2), (2, 4), (2, 6)]


def test_a_dark_image_of_a_batch_of_floats_stays_dark(model):
    """Its values are below 1 of 255, which alone would be those of an image in [0, 1]."""
    dark = np.full((32, 32, 3), 0.9, np.float32)
    batch = np.stack([dark, np.full((32, 32, 3), 200, np.float32)])
    assert np.allclose(model.preprocess(batch)[0], (0.9 / 255 - 0.5) / 0.25, atol=1e-5)
    assert np.allclose(model.preprocess(dark), (0.9 - 0.5) / 0.25, atol=1e-5)


def test_floats_that_a_resize_pushed_beyond_one_are_still_in_the_range_of_one(model):
    image = np.clip(np.linspace(-0.1, 1.1, 32 * 32 * 3), -0.1, 1.1).reshape(32, 32, 3)
    expected = (np.clip(image, 0, 1) - 0.5) / 0.25
    still = replace(PREPROCESS, crop_share=1.0)
    prepared = weights.Model(model.encoder, still).preprocess(image)[0].permute(1, 2, 0)
    assert np.allclose(prepared, expected, atol=1e-5)


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV"]
)
def test_pillow_modes(model, mode):
    through = {"La": "LA", "RGBa": "RGBA", "PA": "P"}.get(mode, "RGB")
    image = PICTURE.convert(through).convert(mode)
    grey = mode in ("1", "L", "LA", "La")
    plain = np.asarray(PICTURE.convert("1" if mode == "1" else "L")) if grey else image.convert("RGB")
    assert np.array_equal(model.embed(image), model.embed(Image.fromarray(np.asarray(plain))))


def test_pillow_images_are_turned_as_their_files_are(model, tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    (tmp_path / "turned.png").write_bytes(encoded(exif=exif))
    upright = model.embed(np.rot90(PIXELS, -1).copy())
    assert np.array_equal(model.embed(tmp_path / "turned.png"), upright)
    assert np.array_equal(model.embed(Image.open(tmp_path / "turned.png")), upright)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_in_every_mode_of_torch(model, vector, file, mode):
    with mode():
        assert close(model.embed([PIXELS, file, PICTURE]), np.repeat(vector, 3, 0))
        assert model.attention([PIXELS, file])[0].shape == (2, 3, 5, 5)
        prepared = model.preprocess([PIXELS, file])
        assert np.allclose(model(prepared).pooled.detach().numpy(), np.repeat(vector, 2, 0), atol=1e-5)


def test_in_threads(model, vector):
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(model.embed, [[PIXELS, PICTURE]] * 8):
            assert close(found, np.repeat(vector, 2, 0))


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_in_half_precision(model, vector, precision):
    half = pickle.loads(pickle.dumps(model)).to(precision)
    scale = np.abs(vector).max()
    assert np.abs(half.embed(PIXELS) - vector).max() < 0.03 * scale
    pooled = half(half.preprocess(PIXELS)).pooled
    assert pooled.dtype == precision
    assert np.abs(pooled.float().detach().numpy() - vector).max() < 0.03 * scale
    assert half.attention(PIXELS)[0].dtype == precision


def test_other_numbers_of_channels():
    torch.manual_seed(0)
    for channels in (1, 4):
        encoder = backbones.build(name="vit-ti/16", image_size=32, depth=1, channels=channels)
        values = {
            name: (x,) * channels for name, x in (("low", 0.0), ("high", 255.0), ("mean", 0.5), ("std", 0.2))
        }
        own = weights.Model(encoder, Preprocess(size=32, channels=channels, **values))
        array = np.random.default_rng(0).integers(0, 256, (40, 50, channels), dtype=np.uint8)
        vectors = own.embed([array, array.transpose(2, 0, 1), torch.from_numpy(array).permute(2, 0, 1)])
        assert np.array_equal(vectors, np.repeat(vectors[:1], 3, 0))
    with pytest.raises(ValueError, match="3 channels"):
        own.embed(PIXELS)


def test_a_collection_of_grey_images_becomes_rgb(model):
    grey = np.asarray(PICTURE.convert("L"))
    collection = ArrayImages(grey[None, :, :, None])
    assert np.array_equal(model.embed(collection), model.embed(np.repeat(grey[:, :, None], 3, 2)))
    assert model.attention(collection)[0].shape == (1, 3, 5, 5)


def test_a_model_prepares_as_its_file_says(model, tmp_path):
    folder = weights.save(tmp_path / "run", model.encoder, model.preprocess).parent
    loaded = omma.load(folder)
    assert loaded.preprocess == PREPROCESS == model.preprocess
    assert hash(loaded.preprocess) == hash(PREPROCESS)
    assert replace(loaded.preprocess, size=48)(PIXELS).shape == (1, 3, 48, 48)
    assert loaded.untrained(1).preprocess(PIXELS).shape == (1, 3, 32, 32)
    loader = torch.utils.data.DataLoader([PIXELS, PIXELS], collate_fn=loaded.preprocess, batch_size=2)
    assert next(iter(loader)).shape == (2, 3, 32, 32)


WRONG = {
    "nothing": (None, "not NoneType"),
    "a number": (3, "not int"),
    "a dictionary": ({"image": PIXELS}, "not dict"),
    "a list of nothing": ([None], "image 0 .* NoneType is no image"),
    "a list within": ([PIXELS, [PIXELS, 1]], "image 1 .* list is no image"),
    "a row without": ([{"file": PIXELS}], "image 0 .* file: none of them is named image"),
    "a vector": (np.zeros(5), "shape .5."),
    "five dimensions": (np.zeros((2, 2, 2, 2, 2)), "shape"),
    "no pixels": (np.zeros((0, 4, 3), np.uint8), "no pixels"),
    "channels": (np.zeros((4, 4, 5), np.uint8), "5 channels"),
    "not a number": (np.full((4, 4, 3), np.nan), "NaN"),
    "complex": (torch.zeros(3, 4, 4, dtype=torch.complex64), "complex64"),
    "without values": (torch.zeros(3, 4, 4, device="meta"), "tensor"),
    "prepared already": (torch.randn(1, 3, 32, 32), "normalised already"),
    "no file": ("none.png", "none.png: "),
    "NUL": ("a\0.png", "null"),
    "empty": (b"", "empty"),
    "no image": (b"text", "not an image"),
    "torn": (encoded()[:200], "image 0"),
    "torn, by PIL": (lambda: Image.open(io.BytesIO(encoded()[:2000])), "PIL cannot read"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_image_is_refused_in_a_line(model, kind):
    wrong, words = WRONG[kind]
    with pytest.raises(ValueError, match=words) as raised:
        model.embed(wrong() if callable(wrong) else wrong)
    assert "\n" not in str(raised.value)


def test_folders_and_sizes_are_refused_in_a_line(model, tmp_path):
    with pytest.raises(ValueError, match=r"is a folder: omma\.embed"):
        model.embed(tmp_path)
    with pytest.raises(ValueError, match="batch=0"):
        model.embed([PIXELS], batch=0)
    with pytest.raises(ValueError, match="threads=0"):
        model.embed([PIXELS], threads=0)


@pytest.mark.parametrize(
    "wrong", [PIXELS, [PIXELS], "a.png", TENSOR, TENSOR[None], torch.zeros(1, 1, 32, 32)]
)
def test_forward_says_what_it_takes(model, wrong):
    with pytest.raises(ValueError, match=r"model\.preprocess"):
        model(wrong)


def test_unknown_layers_are_refused(model):
    with pytest.raises(ValueError, match="layer"):
        model.attention(PIXELS, layers=[7])


def test_the_verbs_take_models_paths_and_collections(model, tmp_path):
    """Every combination that the docstrings name, once."""
    pixels = np.random.default_rng(1).integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)
    labelled = ArrayImages(pixels, labels=np.arange(24) % 2, classes=("a", "b"))
    for i, image in enumerate(pixels):
        path = tmp_path / "images" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    folder = weights.save(tmp_path / "run", model.encoder, model.preprocess).parent
    settings = {"device": "cpu", "precision": "fp32"}
    figures = set()
    models = model, folder, str(folder), folder / "model.safetensors"
    sources = labelled, tmp_path / "images", str(tmp_path / "images"), labelled
    for who, images in zip(models, sources, strict=True):
        done = omma.embed(who, images, tmp_path / "table.parquet", **settings)
        assert (done.rows, done.dim) == (24, 192)
        result = omma.evaluate(who, images, protocols=["knn"], floors=False, cache=None, **settings)
        figures.add((images is labelled, result.results[0].value))
    assert len(figures) == 2  # the split of the two sources is not the same
    exported = omma.export(model, "safetensors", str(tmp_path / "exported"), images=labelled)
    assert omma.load(str(exported.path)).digest == model.digest
    assert Path(omma.export(folder, "safetensors", images=tmp_path / "images").path) == folder / "safetensors"
