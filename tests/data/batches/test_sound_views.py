"""What sounds are seen as: no flips, no colour, normalised as AST's."""

import numpy as np
import pytest

from omma.core.protocols import Colour, Crop, RandAugment
from omma.data.batches import augment, preprocess, sound_views
from omma.data.sources import collection, mel
from omma.data.sources.values import scaling_notes
from tests.helpers.sounds import folder_of, tone, wav_bytes

PLAN = (
    Crop(count=2, size=32, colour=Colour(brightness=0.4, jitter_p=0.8, blur_p=0.5), erase_p=0.25),
    Crop(size=16, augment=RandAugment()),
)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    return collection.open_images(folder_of(tmp_path_factory.mktemp("sounds"), {"a.wav": 2.6, "b.wav": 0.4}))


def test_sounds_are_not_flipped_or_coloured(sounds):
    lines = augment.describe(sound_views.plan(sounds, PLAN), sounds.channels)
    assert not any(word in line for line in lines for word in ("flip", "bright", "blur", "RandAugment"))
    assert "erased 0.25" in lines[0]
    assert lines[0].startswith("2 x 32 px")
    assert sound_views.notes(sounds)
    assert "no flips, no colour" in sound_views.notes(sounds)[0]


def test_images_keep_their_plan():
    images = collection.ArrayImages(np.zeros((2, 8, 8, 1), np.uint8))
    assert sound_views.plan(images, PLAN) == PLAN
    assert sound_views.notes(images) == ()


def test_energies_lose_their_mean_and_twice_their_deviation(sounds):
    measured = preprocess.measure(sounds, 128)
    raw = np.concatenate([sounds.read(i).ravel()[::4] for i in range(len(sounds))])
    made = preprocess.apply(sounds.read(0), measured).numpy()
    expected = (sounds.read(0)[:, :, 0] - raw.mean()) / (2 * raw.std())
    np.testing.assert_allclose(made[0], expected, atol=2e-4)
    note = f"mean {raw.mean():.2f}, std {raw.std():.2f}"
    assert note in preprocess.describe_range(measured)[0]


def test_loud_and_quiet_sounds_are_not_cut_off(sounds, tmp_path):
    measured = preprocess.measure(sounds, 128)
    square = np.sign(np.sin(np.arange(22_000) * 1.3))
    (tmp_path / "loud.wav").write_bytes(wav_bytes(square))
    (tmp_path / "quiet.wav").write_bytes(wav_bytes(tone(1.3, loud=1e-3) * 1e-2))
    others = collection.open_images(tmp_path)
    for i in range(2):
        image = others.read(i)
        back = preprocess.apply(image, measured).numpy()[0] * measured.std[0] + measured.mean[0]
        np.testing.assert_allclose(mel.LOW + back * (mel.HIGH - mel.LOW), image[:, :, 0], atol=1e-3)
    assert scaling_notes(others, measured) == ()
