"""Small WAV files of tones, by the standard library."""

import io
import wave

import numpy as np

RATE = 16_000


def tone(seconds=1.28, hertz=440.0, rate=RATE, loud=0.3, seed=0):
    """Float64 samples: a tone with a little noise."""
    t = np.arange(round(seconds * rate)) / rate
    return loud * np.sin(2 * np.pi * hertz * t) + 0.01 * np.random.default_rng(seed).standard_normal(len(t))


def wav_bytes(samples, rate=RATE):
    """A WAV file of 16 bits; samples [n] or [n, channels]."""
    samples = np.atleast_2d(np.asarray(samples).T).T
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(samples.shape[1])
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(np.round(samples * 32767).astype("<i2").tobytes())
    return file.getvalue()


def folder_of(folder, seconds, rate=RATE):
    """WAV files of these lengths, each of another tone, by name."""
    for k, (name, length) in enumerate(seconds.items()):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(wav_bytes(tone(length, 300 + 97 * k, rate, seed=k), rate))
    return folder


def in_time(image, frames=128):
    """A log-mel image [mels, n] linearly interpolated to so many frames."""
    n = image.shape[1]
    at = (np.arange(frames) + 0.5) * n / frames - 0.5
    return np.stack([np.interp(at, np.arange(n), row) for row in image])
