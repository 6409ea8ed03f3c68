"""The features of a clip are the mean over its tiles."""

import numpy as np
import pytest
import torch
from tones import folder_of, tone, wav_bytes

from omma import backbones
from omma.data.batches import preprocess
from omma.data.sources import collection
from omma.features import extract
from omma.features.extract import pixels, prepare, stream
from omma.weights import Model

SECONDS = {"a.wav": 0.4, "b.wav": 2.8, "c.wav": 4.0, "d.wav": 1.3, "e.wav": 3.9}  # 1, 2, 3, 1 and 3 tiles


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return folder_of(tmp_path_factory.mktemp("sounds"), SECONDS)


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return backbones.build(name="vit-n/8", image_size=16, channels=1, depth=1, dim=16, heads=2, hidden=16)


def by_hand(encoder, folder, measured):
    tiles = collection.open_images(folder)
    batch = torch.stack([preprocess.apply(tiles.read(i), measured) for i in range(len(tiles))])
    with torch.inference_mode():
        vectors = encoder.eval()(batch).pooled.numpy()
    return np.stack([vectors[rows].mean(0) for rows in ([0], [1, 2], [3, 4, 5], [6], [7, 8, 9])]), batch


def test_a_clip_has_the_mean_of_its_tiles(folder, encoder):
    measured = preprocess.measure(collection.open_images(folder), 16)
    expected, batch = by_hand(encoder, folder, measured)
    clips = collection.opened(folder)
    found = extract.extract(encoder, clips, measured)
    np.testing.assert_allclose(found.vectors, expected, atol=1e-5)
    assert found.indices.tolist() == [0, 1, 2, 3, 4]
    assert found.provenance["pooling"] == "mean over a clip's tiles"
    raw = pixels(clips, measured)
    np.testing.assert_allclose(raw.vectors[1], batch[1:3].flatten(1).mean(0).numpy(), atol=1e-6)
    tiles = extract.extract(encoder, collection.open_images(folder), measured)
    assert len(tiles.vectors) == 10


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 16])
def test_batches_are_of_clips(folder, encoder, batch):
    """Tables are written in shards that no batch may cross."""
    measured = preprocess.measure(collection.open_images(folder), 16)
    expected, _ = by_hand(encoder, folder, measured)
    network = prepare(encoder, torch.device("cpu"), torch.float32)
    parts = list(stream(network, collection.opened(folder), measured, batch, whole=True))
    assert [len(part.indices) for part in parts] == [min(batch, 5 - k) for k in range(0, 5, batch)]
    assert np.concatenate([part.indices for part in parts]).tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(np.concatenate([part.vectors for part in parts]), expected, atol=1e-5)


def test_a_clip_with_an_unreadable_tile_is_left_out(tmp_path, encoder):
    folder_of(tmp_path, SECONDS)
    measured = preprocess.measure(collection.open_images(tmp_path), 16)
    clips = collection.opened(tmp_path)
    (tmp_path / "c.wav").write_bytes(wav_bytes(tone(1.4)))
    found = extract.extract(encoder, clips, measured, batch=2)
    assert found.indices.tolist() == [0, 1, 3, 4]
    assert found.bad == (("c.wav", "the file was changed after it was listed"),)
    alone = collection.opened(tmp_path).subset(np.array([4, 1]))
    np.testing.assert_allclose(
        extract.extract(encoder, alone, measured).vectors, found.vectors[[3, 1]], atol=1e-5
    )


def test_a_model_embeds_clips(folder, encoder):
    measured = preprocess.measure(collection.open_images(folder), 16)
    expected, _ = by_hand(encoder, folder, measured)
    model = Model(encoder, measured)
    np.testing.assert_allclose(model.embed(collection.opened(folder)), expected, atol=1e-5)
    assert len(model.embed(collection.open_images(folder))) == 10
    with pytest.raises(ValueError, match=r"a\.wav: a sound, not an image"):
        model.embed([folder / "a.wav"])
