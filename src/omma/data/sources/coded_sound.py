"""FLAC, MP3, Ogg and Opus files, decoded by torchcodec (FFmpeg), which is an extra."""

from typing import Any

import numpy as np
from jaxtyping import Float

from omma.core.errors import install_command, line
from omma.core.protocols import BadImage


class Coded:
    """A sound of any format that FFmpeg reads. source: a file's path, or its bytes."""

    def __init__(self, source: str | bytes) -> None:
        try:
            from torchcodec.decoders import AudioDecoder
        except (ImportError, RuntimeError, OSError) as error:  # FFmpeg's libraries are missing
            missing = isinstance(error, ImportError)
            kind = "needs torchcodec" if missing else "torchcodec cannot be loaded"
            remedy = f"{install_command('torchcodec')}, and" if missing else "install"
            raise BadImage(f"{kind}: {remedy} FFmpeg, or convert it to WAV") from None
        try:
            self._decoder: Any = AudioDecoder(source)
        except (RuntimeError, ValueError, OSError) as error:
            raise BadImage(f"damaged sound: {line(error)}") from None
        known = self._decoder.metadata
        if not known.sample_rate or not known.duration_seconds:
            raise BadImage("damaged sound: its length is not known")
        self.rate = int(known.sample_rate)
        self.length = round(known.duration_seconds * known.sample_rate)
        self._start = float(known.begin_stream_seconds or 0)

    def read(self, first: int, stop: int) -> Float[np.ndarray, "n"]:
        """Samples first to stop as float64, the mean of all channels.

        The length that a header tells may be a little too long: what is missing at the end is silence.
        """
        seconds = (self._start + (sample - 0.25) / self.rate for sample in (first, stop))
        start, end = (max(each, self._start) for each in seconds)
        try:
            samples = self._decoder.get_samples_played_in_range(start, end).data
        except (RuntimeError, ValueError, IndexError) as error:
            raise BadImage(f"damaged sound: {line(error)}") from None
        values = samples.numpy().astype(np.float64).mean(axis=0)[: stop - first]
        return np.pad(values, (0, stop - first - len(values)))
