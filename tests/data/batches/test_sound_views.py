"""What sounds are seen as: no flips, no colour, normalised as AST's."""

import numpy as np
import pytest
import torch
from tones import folder_of, tone, wav_bytes

from omma.core.protocols import Colour, Crop, Key, Preprocess, RandAugment, Spectrum
from omma.data.batches import augment, preprocess, sound_views
from omma.data.sources import collection, mel
from omma.data.sources.values import scaling_notes

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
    assert "level 0.2, tilt 0.2, noise 0.2" in lines[0]
    assert "level" not in lines[1], "a method that changes no colours changes no spectra"
    assert "no flips, no colours" in sound_views.notes(sounds)[0]


def test_spectra_change_by_view_as_said_and_alike_in_frames():
    n, setting = 400, Spectrum(level=0.3, tilt=0.5, noise=0.2)
    key = Key(3, np.zeros(n, np.int64), np.arange(n))
    pre = Preprocess(size=16, channels=1, low=(0.0,), high=(1.0,), mean=(0.5,), std=(0.25,))
    raw = torch.full((n, 2, 1, 16, 16), 0.5)  # 0, normalised
    plan = (Crop(size=16, count=2, spectrum=setting),)
    (changed,) = augment.augment((raw,), plan, key, pre)
    rows = changed.mean(-1)[:, :, 0]  # [n, 2, 16], noise averaged
    level = rows.mean(-1)
    assert abs(float(level.std()) - 0.3) < 0.03
    slope = (rows[..., 8:].mean(-1) - rows[..., :8].mean(-1)) / (16 / 15)
    assert abs(float(slope.std()) - 0.5) < 0.05
    assert abs(float(torch.corrcoef(level.T)[0, 1])) < 0.15, "views are changed independently"
    rest = changed - changed.mean(-1, keepdim=True)
    assert 0.08 < float(rest.std(-1).mean()) < 0.12
    (part,) = augment.augment((raw[5:9],), plan, Key(3, key.epoch[5:9], key.index[5:9]), pre)
    assert torch.equal(part, changed[5:9])
    alike = (Crop(size=16, frames=2, spectrum=Spectrum(noise=0.0)),)
    (frames,) = augment.augment((raw,), alike, key, pre)
    assert torch.equal(frames[:, 0], frames[:, 1])
    assert not torch.equal(frames[0], frames[1])


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
