"""Features: in order, once, from the right inputs, leaving the encoder as it was."""

import numpy as np
import pytest
import torch
from torch import nn

from omma.core.protocols import Backbone, BadImage, Features, Preprocess
from omma.data.batches.preprocess import load_batch
from omma.data.sources.collection import ArrayImages, open_images
from omma.features import extract
from omma.weights import digest


@pytest.fixture(autouse=True)
def one_thread():
    """Networks this small lose by threads, and on a busy machine threads wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Tiny(Backbone):
    """A linear patch embedding, counting what passes through it."""

    passed = 0

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.dim, self.patch, self.channels, self.drops_tokens, self.name = 6, 4, channels, True, "tiny"
        self.embed = nn.Linear(channels * 16, 6)
        self.drop = nn.Dropout(0.5)

    def grid(self, height, width):
        return height // 4, width // 4

    def tokenize(self, images, keep=None):
        Tiny.passed += len(images)
        return self.embed(nn.functional.unfold(images, 4, stride=4).transpose(1, 2))

    def encode(self, tokens, grid, keep=None):
        return Features(self.drop(tokens).mean(1), tokens, grid)

    def spec(self):
        return {"name": "tiny", "channels": self.channels}


def preprocess(size=8, channels=3) -> Preprocess:
    return Preprocess(
        size=size,
        channels=channels,
        low=(0.0,) * channels,
        high=(255.0,) * channels,
        mean=(0.5,) * channels,
        std=(0.25,) * channels,
    )


def images(n=20, size=12, channels=3, seed=0) -> ArrayImages:
    rng = np.random.default_rng(seed)
    return ArrayImages(rng.integers(0, 256, (n, size, size, channels), dtype=np.uint8))


class Holes:
    """Images of which some cannot be read."""

    labels = splits = None
    classes = ()
    channels = 3

    def __init__(self, n: int, bad: set[int]) -> None:
        self.inner, self.bad = images(n), bad

    def __len__(self):
        return len(self.inner)

    def path(self, i):
        return f"{i}.png"

    def read(self, i, at_least=None):
        if i in self.bad:
            raise BadImage("torn")
        return self.inner.read(i, at_least)

    def subset(self, indices):
        raise NotImplementedError


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return Tiny()


def test_batches_change_nothing_and_the_encoder_stays_as_it_was(encoder):
    encoder.train()
    a = extract.extract(encoder, images(), preprocess(), batch=7)
    b = extract.extract(encoder, images(), preprocess(), batch=100)
    assert a.vectors.dtype == np.float32
    assert a.vectors.shape == (20, 6)
    assert np.allclose(a.vectors, b.vectors, atol=1e-6)
    assert a.indices.tolist() == list(range(20))
    assert encoder.training
    assert next(encoder.parameters()).dtype == torch.float32


def test_features_are_those_of_a_plain_forward_pass(encoder):
    from omma.data.batches.preprocess import apply

    found = extract.extract(encoder, images(), preprocess()).vectors
    inputs = torch.stack([apply(images().read(i), preprocess()) for i in range(20)])
    with torch.no_grad():
        assert np.allclose(found, encoder.eval()(inputs).pooled.numpy(), atol=1e-6)


def test_bf16_is_close(encoder):
    a, b = (
        extract.extract(encoder, images(), preprocess(), precision=p).vectors
        for p in (torch.float32, torch.bfloat16)
    )
    assert b.dtype == np.float32
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert 0.999 < cosine.min() < 1


@pytest.mark.parametrize("bad", [{0, 13}, set(range(7))])  # the second: a whole batch
def test_bad_images_are_left_out_and_listed(encoder, bad):
    whole = extract.extract(encoder, images(20), preprocess()).vectors
    found = extract.extract(encoder, Holes(20, bad), preprocess(), batch=7)
    good = [i for i in range(20) if i not in bad]
    assert found.indices.tolist() == good
    assert found.bad == tuple((f"{i}.png", "torn") for i in sorted(bad))
    assert np.allclose(found.vectors, whole[good], atol=1e-6)


def test_nothing_readable_is_refused(encoder):
    with pytest.raises(ValueError, match=r"none of 3 images .* 0\.png: torn"):
        extract.extract(encoder, Holes(3, {0, 1, 2}), preprocess())


def test_cached_by_content_of_model_and_data(encoder, tmp_path):
    def passed(model, data, **options) -> int:
        before = Tiny.passed
        arguments = {"cache": tmp_path, "model_digest": digest(model)} | options
        found.append(extract.extract(model, data, preprocess(), **arguments))
        return Tiny.passed - before

    found = []
    assert passed(encoder, images()) == 20
    assert passed(encoder, images()) == 0
    assert (found[0].vectors == found[1].vectors).all()
    assert (found[0].indices == found[1].indices).all()
    assert passed(encoder, images(seed=1)) == 20  # other data

    assert passed(encoder, images(), precision=torch.bfloat16) == 20
    with torch.no_grad():
        encoder.embed.bias[0] += 1e-3
    assert passed(encoder, images()) == 20  # other weights
    assert passed(encoder, images(), cache=None) == 20


def test_a_damaged_cache_is_computed_anew(encoder, tmp_path):
    arguments = (encoder, images(), preprocess())
    first = extract.extract(*arguments, cache=tmp_path, model_digest="x")
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    flipped = whole[:-40] + bytes([whole[-40] ^ 64]) + whole[-39:]
    for broken in (whole[:-40], flipped):
        file.write_bytes(broken)
        again = extract.extract(*arguments, cache=tmp_path, model_digest="x")
        assert (first.vectors == again.vectors).all()
        assert (first.indices == again.indices).all()
    assert [f.suffix for f in tmp_path.iterdir()] == [".safetensors"]


def test_an_unwritable_cache_costs_nothing_but_time(encoder, tmp_path):
    (tmp_path / "file").touch()
    found = extract.extract(encoder, images(), preprocess(), cache=tmp_path / "file", model_digest="x")
    assert len(found.vectors) == 20


@pytest.mark.parametrize("n", [1, 5, 10, 11, 40])
def test_every_image_comes_once(encoder, n):
    network = extract.prepare(encoder, extract.CPU, torch.float32)
    batches = list(extract.stream(network, images(n), preprocess(), batch=5))
    assert np.concatenate([b.indices for b in batches]).tolist() == list(range(n))


def test_progress_ends_at_the_number_of_images(encoder):
    seen = []
    extract.extract(encoder, Holes(20, {3}), preprocess(), batch=6, progress=lambda *a: seen.append(a))
    assert seen == [(6, 20), (12, 20), (18, 20), (20, 20)]


def test_an_error_while_decoding_ends_the_stream(encoder):
    class Broken(Holes):
        def read(self, i, at_least=None):
            raise RuntimeError("not a BadImage")

    with pytest.raises(RuntimeError, match="not a BadImage"):
        extract.extract(encoder, Broken(20, set()), preprocess())


def test_grey_images_suit_a_colour_model_and_six_channels_do_not(encoder):
    assert extract.extract(encoder, images(channels=1), preprocess()).vectors.shape == (20, 6)
    with pytest.raises(ValueError, match="3 channels, these have 6"):
        extract.extract(encoder, images(channels=6), preprocess())


def test_pixels_are_small_normalised_images():
    found = extract.pixels(images(size=64), preprocess(size=48))
    assert found.vectors.shape == (20, 32 * 32 * 3)
    assert np.abs(found.vectors).max() <= 2.0001  # [0, 1] by mean .5 and deviation .25
    many = extract.pixels(images(size=40, channels=13), preprocess(size=40, channels=13))
    assert many.vectors.shape == (20, 17 * 17 * 13)


def test_large_photographs_are_decoded_at_full_size(tmp_path):
    """A noisy JPEG has the features of its pixels, as Pillow decodes them and PNG keeps them."""
    image_module = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    smooth = np.add.outer(np.arange(600), np.arange(900))[..., None] / 6 + np.array([0, 20, 40])
    noisy = np.clip(smooth + rng.normal(0, 40, (600, 900, 3)), 0, 255).astype(np.uint8)
    for folder in ("jpeg", "png"):
        (tmp_path / folder).mkdir()
    image_module.fromarray(noisy).save(tmp_path / "jpeg" / "0.jpg", quality=85)
    image_module.open(tmp_path / "jpeg" / "0.jpg").save(tmp_path / "png" / "0.png")
    torch.manual_seed(0)
    network, large = extract.prepare(Tiny(), extract.CPU, torch.float32), preprocess(size=64)
    jpeg, png = (
        next(extract.stream(network, open_images(tmp_path / kind, cache=tmp_path), large, of=patches)).vectors
        for kind in ("jpeg", "png")
    )
    np.testing.assert_allclose(jpeg, png, atol=0.02)  # of values around 1
    images, first = open_images(tmp_path / "jpeg", cache=tmp_path), np.zeros(1, int)
    whole, fewer = (load_batch(images, first, large, reduced=reduced)[0] for reduced in (False, True))
    assert (whole - fewer).abs().mean() * 0.25 * 255 > 1  # of 255: what reduced decoding changes


def patches(features):
    return features.patches
