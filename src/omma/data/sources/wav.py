"""WAV files: where the samples lie and what they are, read from any place without reading the rest.

RIFF and RF64; PCM of 8, 16, 24 and 32 bits, floats of 32 and 64 bits, also as WAVE_FORMAT_EXTENSIBLE.
"""

import struct
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from omma.core.protocols import BadImage

Bytes = Callable[[int, int], bytes]  # offset, size -> up to so many bytes of a file

_CHUNKS = 1_000  # of a file, before its samples
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_NAMES = {2: "ADPCM", 6: "A-law", 7: "mu-law", 17: "ADPCM", 80: "MPEG", 85: "MP3", 255: "AAC"}
# sizes that programs write before they know (7FFFF000: SoX, eSpeak; FFFFFFFF: FFmpeg), and after too much
_STREAMED = (range(0x7FFF0000, 0x80000000), range(0xFFFF0000, 0x100000000))
_LOUDEST = 16.0  # of floats, which may leave [-1, 1] a little; integers written as floats exceed it
_RATES = (1_000, 1_000_000)  # Hz


class Wav(NamedTuple):
    """Samples of a WAV file."""

    rate: int  # Hz
    channels: int
    bits: int  # of a sample, as stored
    floats: bool
    start: int  # byte of the first sample
    length: int  # samples of each channel

    def read(self, data: Bytes, first: int, stop: int) -> Float[np.ndarray, "n"]:
        """Samples first to stop as float64, the mean of all channels, about in [-1, 1]. Raises BadImage."""
        width = self.channels * self.bits // 8
        raw = data(self.start + first * width, (stop - first) * width)
        if len(raw) < (stop - first) * width:
            raise BadImage("the file was cut after it was listed")
        values = self._values(raw).reshape(-1, self.channels)
        values = values[:, 0] if self.channels == 1 else values.mean(axis=1)
        if self.floats and not np.isfinite(values).all():
            raise BadImage("NaN or infinite values")
        if self.floats and (peak := float(np.abs(values).max(initial=0.0))) > _LOUDEST:
            raise BadImage(f"float samples of up to {peak:,.4g}: scale them to [-1, 1]")
        return values

    def _values(self, raw: bytes) -> np.ndarray:
        if self.floats:
            return np.frombuffer(raw, f"<f{self.bits // 8}").astype(np.float64)
        if self.bits == 8:  # the only one without a sign
            return (np.frombuffer(raw, np.uint8) - 128.0) / 128
        if self.bits == 24:
            wide = np.zeros((len(raw) // 3, 4), np.uint8)
            wide[:, 1:] = np.frombuffer(raw, np.uint8).reshape(-1, 3)
            return wide.view("<i4")[:, 0] / 2.0**31
        return np.frombuffer(raw, f"<i{self.bits // 8}") / 2.0 ** (self.bits - 1)


def header(data: Bytes, size: int) -> Wav:
    """What a file of so many bytes holds, from the heads of its chunks. Raises BadImage."""
    head = data(0, 12)
    if len(head) < 12 or head[:4] not in (b"RIFF", b"RF64") or head[8:] != b"WAVE":
        raise BadImage("not a WAV file" if head else "empty file")
    at, wide, form = 12, None, None
    for _ in range(_CHUNKS):
        chunk = data(at, 8)
        if len(chunk) < 8:
            break
        name, length = chunk[:4], struct.unpack("<I", chunk[4:])[0]
        if name == b"ds64" and len(sizes := data(at + 8, 16)) == 16:
            wide = struct.unpack("<QQ", sizes)[1]
        elif name == b"fmt ":
            form = _format(data(at + 8, min(length, 40)))
        elif name == b"data":
            if form is None:
                raise BadImage("damaged WAV: samples before their format")
            return _samples(form, at + 8, wide if length == 0xFFFFFFFF and wide is not None else length, size)
        at += 8 + length + length % 2
    raise BadImage("damaged WAV: no samples in it")


def _format(chunk: bytes) -> Wav:
    if len(chunk) < 16:
        raise BadImage("damaged WAV: its format is cut off")
    code, channels, rate, _, width, bits = struct.unpack("<HHIIHH", chunk[:16])
    if code == _EXTENSIBLE:
        if len(chunk) < 26:
            raise BadImage("damaged WAV: its format is cut off")
        code = struct.unpack("<H", chunk[24:26])[0]
    if code not in (_PCM, _FLOAT):
        raise BadImage(f"WAV of {_NAMES.get(code, f'type {code:#x}')}: convert it to 16-bit PCM")
    if bits not in ((32, 64) if code == _FLOAT else (8, 16, 24, 32)):
        raise BadImage(f"WAV of {bits} bits a sample: convert it to 16-bit PCM")
    if not channels or width != channels * bits // 8:
        raise BadImage(f"damaged WAV: {channels} channels of {bits} bits in {width} bytes")
    if not _RATES[0] <= rate <= _RATES[1]:
        raise BadImage(f"damaged WAV: {rate} samples a second")
    return Wav(rate, channels, bits, code == _FLOAT, 0, 0)


def _samples(form: Wav, start: int, length: int, size: int) -> Wav:
    there = max(size - start, 0)
    if length > there:
        if not any(length in sizes for sizes in _STREAMED):
            raise BadImage(f"cut off: {there:,} of {length:,} bytes of its samples are there")
        length = there
    return form._replace(start=start, length=length // (form.channels * form.bits // 8))
