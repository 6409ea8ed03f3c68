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
    assert "pauses of up to 70% 0.7, level 8 dB, tilt 8 dB, range 0.3, noise 0 to 50 dB below 0.8" in lines[0]
    assert "level" not in lines[1], "a method that changes no colours changes no spectra"
    assert "no flips, no colours" in sound_views.notes(sounds)[0]


N = 400
KEY = Key(3, np.zeros(N, np.int64), np.arange(N))
PRE = Preprocess(size=16, channels=1, low=(-16.0,), high=(4.0,), mean=(0.5,), std=(0.25,))
UNIT = 20 * 0.25 * 10 / np.log(10)  # dB in a normalised value of 1


def changed(raw, **setting):
    """In dB of energy."""
    none = {"pause_p": 0.0, "contrast": 0.0, "level": 0.0, "tilt": 0.0, "noise_p": 0.0}
    plan = (Crop(size=16, count=2, spectrum=Spectrum(**{**none, **setting})),)
    (views,) = augment.augment((raw,), plan, KEY, PRE)
    return views * UNIT


def test_loudness_and_spectra_change_by_view():
    rows = changed(torch.full((N, 2, 1, 16, 16), 0.5), level=6.0, tilt=10.0)
    assert torch.allclose(rows, rows[..., :1], atol=1e-3), "alike at all times"
    level = rows.mean((2, 3, 4))
    assert abs(float(level.std()) - 6) < 0.6
    assert abs(float(torch.corrcoef(level.T)[0, 1])) < 0.15, "views are changed independently"
    ends = rows[:, :, 0, [0, -1], 0]
    slope = (ends[..., 1] - ends[..., 0]) / 2
    assert abs(float(slope.std()) - 10) < 1


def test_pauses_press_a_sound_together_between_silence():
    raw = torch.full((N, 2, 1, 16, 16), -16.0)
    raw[..., 5, 1:] = torch.linspace(-8, -1, 15)  # the first column is silent
    before, after = changed(raw)[0, 0, 0, 5, 1:], changed(raw, pause_p=1.0, pause=1.0)[:, :, 0, 5]
    silent = after < float(before.min()) - 1
    share = 1 - 15 / 16 / (1 + torch.rand(100_000, generator=torch.Generator().manual_seed(0)))
    assert abs(float(silent.float().mean()) - float(share.mean())) < 0.02
    assert bool(silent[..., 0].any()), "before"
    assert bool(silent[..., -1].any()), "after"
    both = ~silent[..., 1:] & ~silent[..., :-1]
    assert float(after.diff(dim=-1)[both].min()) > 0, "time runs as before"
    assert int(silent.float().diff(dim=-1).abs().sum(-1).max()) <= 2, "in one piece"
    assert float(after.max()) <= float(before.max()) + 1e-3


def test_the_range_changes_about_the_mean():
    raw = torch.rand(N, 2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    before, after = changed(raw), changed(raw, contrast=0.4)
    torch.testing.assert_close(before.mean((2, 3, 4)), after.mean((2, 3, 4)), atol=1e-3, rtol=0)
    factor = after.std((2, 3, 4)) / before.std((2, 3, 4))
    assert abs(float(factor.log().std()) - 0.4) < 0.04


@pytest.mark.parametrize("snr", [20.0, 0.0])
def test_noise_is_added_as_energy(snr):
    """A tone of one row: the noise is that much below its mean energy, and leaves it as it is."""
    raw = torch.full((N, 2, 1, 16, 16), -16.0)
    raw[..., 5, :] = -1
    before = changed(raw) / 10
    tone = 10 ** before[..., 5, :].double()
    after = 10 ** (changed(raw, noise_p=1.0, snr=(snr, snr), noise_tilt=0.0) / 10).double()
    noise = after - 10 ** before.double()
    wanted = tone.mean() / 16 * 10 ** (-snr / 10)  # the tone is a sixteenth of the rows
    median = float(noise[..., :5, :].median() / wanted)
    assert abs(10 * np.log10(median)) < 0.2
    spread = 10 * noise[..., :5, :].log10()
    assert abs(float(spread.std()) - 3) < 0.1
    coloured = changed(raw, noise_p=1.0, snr=(snr, snr), noise_tilt=10.0)[:, :, 0].mean(-1)
    assert abs(float((coloured[..., -1] - coloured[..., 0]).std()) - 20) < 2
    some = changed(raw, noise_p=0.5, snr=(snr, snr))[:, :, 0, 0, 0] > changed(raw)[:, :, 0, 0, 0] + 1
    assert abs(float(some.double().mean()) - 0.5) < 0.06


def test_spectra_are_a_function_of_the_key_and_alike_in_frames():
    raw = torch.rand(N, 2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    (whole,) = augment.augment((raw,), (Crop(size=16, count=2, spectrum=Spectrum()),), KEY, PRE)
    some = Key(3, KEY.epoch[5:9], KEY.index[5:9])
    (part,) = augment.augment((raw[5:9],), (Crop(size=16, count=2, spectrum=Spectrum()),), some, PRE)
    assert torch.equal(part, whole[5:9])
    assert torch.isfinite(whole).all()
    same = raw[:, :1].expand(-1, 2, -1, -1, -1).clone()
    (frames,) = augment.augment((same,), (Crop(size=16, frames=2, spectrum=Spectrum(noise_p=0.0)),), KEY, PRE)
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


def test_a_model_made_for_the_other_kind_is_named(sounds):
    made_for_sounds = preprocess.measure(sounds, 128)
    photos = collection.ArrayImages(np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), np.uint8))
    assert scaling_notes(sounds, made_for_sounds) == ()
    (note,) = scaling_notes(sounds, preprocess.measure(photos, 8))
    assert note == "the model was made for images, and these are sounds: pretrain one on sounds"
    assert "made for sounds, and these are images" in scaling_notes(photos, made_for_sounds)[0]
