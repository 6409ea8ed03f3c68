"""Log-mel energies: AST's numbers, and parts that equal the whole."""

import numpy as np
import pytest
from scipy.signal import resample_poly

from omma.data.sources import mel

T = np.arange(16_000)
SWEEP = (
    0.3 * np.sin(2 * np.pi * (200 * T / 16_000 + 1500 * (T / 16_000) ** 2))
    + 0.05 * np.sin(T * T % 977)
    + 0.02
)

# transformers 5.24, ASTFeatureExtractor._extract_fbank_features(SWEEP, 98): mels 0, 5, 40, 80, 127 by frame
AST = {
    0: (-7.64011, -8.94497, -5.70598, 0.42005, 0.45002),
    31: (-8.38747, -10.54467, -5.37794, 0.22797, 0.49383),
    64: (-7.46925, -10.50151, -5.70667, -0.16249, 0.59558),
    97: (-9.83676, -12.14718, -6.57846, -1.15485, 1.2582),
}


def test_energies_are_those_of_ast():
    energies = mel.log_mel(SWEEP.astype(np.float32))
    assert energies.shape == (98, 128)
    for frame, values in AST.items():
        np.testing.assert_allclose(energies[frame, [0, 5, 40, 80, 127]], values, atol=2e-5)
    assert energies.mean() == pytest.approx(-2.790998, abs=1e-5)


@pytest.mark.filterwarnings("ignore:At least one mel filter")
def test_energies_equal_those_of_transformers():
    transformers = pytest.importorskip("transformers")
    samples = np.random.default_rng(0).standard_normal(9_000).astype(np.float32) * 0.1
    frames = mel.frames_in(len(samples))
    theirs = transformers.ASTFeatureExtractor(do_normalize=False)._extract_fbank_features(samples, frames)
    np.testing.assert_allclose(mel.log_mel(samples), theirs, atol=5e-6)


def test_silence_has_the_floor_and_the_loudest_sound_stays_below_the_range():
    assert np.unique(mel.log_mel(np.zeros(800))) == pytest.approx([np.log(mel.FLOOR)])
    assert np.log(mel.FLOOR) > mel.LOW
    loudest = np.sign(np.random.default_rng(0).standard_normal(16_000))
    square = np.sign(np.sin(np.arange(16_000) * 2.9))
    assert 5 < max(mel.log_mel(loudest).max(), mel.log_mel(square).max()) < mel.HIGH


def test_the_mean_of_a_recording_changes_nothing():
    """Each window loses its own, so AST's subtraction of the clip's mean needs no pass over the clip."""
    np.testing.assert_allclose(mel.log_mel(SWEEP + 0.4), mel.log_mel(SWEEP), atol=1e-5)


def test_a_tone_lies_in_the_mel_of_its_frequency():
    energies = mel.log_mel(np.sin(2 * np.pi * 1000 * T / 16_000))
    mels = 1127 * np.log1p(np.array([20, 1000, 8000]) / 700)
    assert energies.mean(0).argmax() == pytest.approx(
        (mels[1] - mels[0]) / (mels[2] - mels[0]) * 129 - 1, abs=1
    )


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000, 11_025, 44_056])
def test_a_part_is_resampled_as_the_whole(rate):
    samples = np.random.default_rng(rate).standard_normal(2 * rate)
    length = mel.length_at_16k(len(samples), rate)
    whole = mel.resampled(samples, 0, 0, length, rate)
    factor = np.gcd(rate, 16_000)
    np.testing.assert_allclose(whole, resample_poly(samples, 16_000 // factor, rate // factor), atol=1e-12)
    for start, stop in ((0, 500), (4_001, 9_999), (length - 700, length)):
        low, high = mel.needed(start, stop, rate)
        low, high = max(low, 0), min(high, len(samples))
        assert high - low < (stop - start) * rate / 16_000 + 2 * rate
        np.testing.assert_array_equal(
            mel.resampled(samples[low:high], low, start, stop, rate), whole[start:stop]
        )
