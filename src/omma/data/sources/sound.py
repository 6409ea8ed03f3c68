"""Sounds as images: log-mel energies in tiles of 128 mels x 128 frames, lowest mel at the bottom."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from omma.core.protocols import BadImage
from omma.data.sources import file_parts, mel, wav
from omma.data.sources.coded_sound import Coded
from omma.data.sources.file_parts import Parts
from omma.data.sources.readers import Archive, Files

SIDE = 128  # frames of a tile, and mels
ALL = -1  # in place of a tile's number: the whole clip


class Recording(Protocol):
    """The samples of one clip."""

    @property
    def rate(self) -> int:
        """Samples a second."""
        ...

    @property
    def length(self) -> int:
        """Samples of each channel."""
        ...

    def read(self, first: int, stop: int) -> Float[np.ndarray, "n"]:
        """Samples first to stop in [-1, 1], the mean of all channels. Raises BadImage."""
        ...


@dataclass(frozen=True)
class Sounds:
    """Tiles of clips or whole clips, as a store; a whole clip is its tiles side by side.

    `where` is that of `files`, where it has one, then the number of the tile (ALL: the whole clip, whose path
    is the file's; a tile's ends in "#NUMBER") and the number of the clip's tiles.
    """

    files: Files | Archive

    def load(
        self, path: str, where: np.ndarray | None, channels: int | None, at_least: int | None
    ) -> Float[np.ndarray, "128 frames 1"]:
        assert where is not None
        tile, tiles = (int(number) for number in where[-2:])
        name, inner = (path if tile == ALL else clip_of(path)), self._inner(where)
        with _recording(self.files, name, inner) as clip:
            numbers = range(tiles) if tile == ALL else [tile]
            image = np.concatenate([_tile(clip, number, tiles) for number in numbers], axis=1)
        return image[:, :, None]

    def tiles(self, path: str, where: np.ndarray | None) -> int:
        """Tiles of a clip, from its header; where: of `files`. Raises BadImage."""
        with _recording(self.files, path, where) as clip:
            return tiles_in(_frames(clip))

    def content(self, path: str, where: np.ndarray | None) -> bytes:
        """The bytes of the file. Raises BadImage."""
        assert where is not None
        name = path if int(where[-2]) == ALL else clip_of(path)
        return self.files.content(name, self._inner(where))

    def stamp(self, paths: list[str]) -> str:
        return self.files.stamp(paths)

    def unwrapped(
        self, paths: pa.LargeStringArray, where: np.ndarray | None
    ) -> tuple[Files | Archive, pa.LargeStringArray, np.ndarray | None, None, pa.LargeStringArray]:
        """For `Identity`: the store of files, paths, places in it, nothing, and the file of each image."""
        assert where is not None
        names = zip(paths.to_pylist(), where[:, -2].tolist())
        files = [path if tile == ALL else clip_of(path) for path, tile in names]
        inner = where[:, :-2] if where.shape[1] > 2 else None
        return self.files, paths, inner, None, pa.array(files, pa.large_string())

    @staticmethod
    def _inner(where: np.ndarray) -> np.ndarray | None:
        return where[:-2] if len(where) > 2 else None


def clip_of(path: str) -> str:
    """The path of the clip that a tile is of."""
    return path.rpartition("#")[0]


def first_tile(path: str, where: np.ndarray | None) -> tuple[str, np.ndarray]:
    """Path and place of a whole clip's first tile."""
    assert where is not None
    return f"{path}#0", np.array([*where[:-2], 0, where[-1]])


def tiles_in(frames: int) -> int:
    """Equal tiles that so many frames are cut into: one at least, each as close to 128 frames as can be."""
    return max(1, (2 * frames + SIDE) // (2 * SIDE))


def _frames(clip: Recording) -> int:
    frames = mel.frames_in(mel.length_at_16k(clip.length, clip.rate))
    if not frames:
        raise BadImage("shorter than 25 ms")
    return frames


def _tile(clip: Recording, number: int, tiles: int) -> Float[np.ndarray, "128 128"]:
    """Tile `number` of `tiles`, drawn out or pressed together in time to 128 frames."""
    frames = _frames(clip)
    if tiles_in(frames) != tiles:
        raise BadImage("the file was changed after it was listed")
    first, end = (k * frames // tiles for k in (number, number + 1))
    start, stop = mel.span(first, end - first)
    low, high = mel.needed(start, stop, clip.rate)
    low, high = max(low, 0), min(high, clip.length)
    samples = mel.resampled(clip.read(low, high), low, start, stop, clip.rate)
    return _in_time(mel.log_mel(samples).T[::-1], SIDE)


def _in_time(image: Float[np.ndarray, "mels n"], frames: int) -> Float[np.ndarray, "mels frames"]:
    """Linearly interpolated to so many frames."""
    n = image.shape[1]
    at = ((np.arange(frames) + 0.5) * (n / frames) - 0.5).clip(0, n - 1)
    left = at.astype(np.int64)
    right, share = np.minimum(left + 1, n - 1), (at - left).astype(np.float32)
    return np.ascontiguousarray(image[:, left] * (1 - share) + image[:, right] * share)


# ---------------------------------------------------------------- files
@dataclass(frozen=True)
class _WavFile:
    """A WAV file, read in parts."""

    form: wav.Wav
    parts: Parts

    @property
    def rate(self) -> int:
        return self.form.rate

    @property
    def length(self) -> int:
        return self.form.length

    def read(self, first: int, stop: int) -> Float[np.ndarray, "n"]:
        return self.form.read(self.parts.read, first, stop)


@contextmanager
def _recording(files: Files | Archive, path: str, where: np.ndarray | None) -> Iterator[Recording]:
    if path.lower().endswith((".wav", ".wave")):
        with file_parts.opened(files, path, where) as parts:
            yield _WavFile(wav.header(*parts), parts)
    else:
        yield Coded(file_parts.on_disk(files, path) or files.content(path, where))
