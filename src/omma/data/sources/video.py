"""Frames of videos as images, decoded in any order through torchcodec (FFmpeg), which is an extra."""

import os
import re
import stat
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import UInt8

from omma.core.errors import install_command
from omma.core.protocols import BadImage, Inaccessible
from omma.data.sources.decode import PIXELS
from omma.data.sources.file_parts import on_disk
from omma.data.sources.names import VIDEOS, inaccessible
from omma.data.sources.readers import Files

OPEN = 4  # videos that a thread keeps open: opening one reads it once, to find its frames
WHOLE = -1  # in place of a frame's number: the file is an image
_FRAME = re.compile(rf"(.*\.(?:{'|'.join(sorted(VIDEOS))}))(?:#([0-9]+))?", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class Videos:
    """Frames of videos, and images beside them, as a store.

    `where` is the frame's number, from 0, in the order in which frames are shown; WHOLE for an image. The
    path of frame 12 of clip.mp4 is clip.mp4#00012.
    """

    files: Files

    def load(
        self, path: str, where: np.ndarray | None, channels: int | None, at_least: int | None
    ) -> np.ndarray:
        assert where is not None
        if (number := int(where[0])) == WHOLE:
            return self.files.load(path, None, channels, at_least)
        return self._video(file_of(path)).frame(number)

    def frames(self, path: str) -> int:
        """How many frames a video has. Raises BadImage."""
        return self._video(path).length

    def content(self, path: str, where: np.ndarray | None) -> bytes:
        """The bytes of an image's file; of a frame, the frame as PPM. Raises BadImage."""
        assert where is not None
        if int(where[0]) == WHOLE:
            return self.files.content(path, None)
        pixels = self.load(path, where, None, None)
        return b"P6\n%d %d\n255\n" % (pixels.shape[1], pixels.shape[0]) + pixels.tobytes()

    def stamp(self, paths: list[str]) -> str:
        return self.files.stamp(paths)

    def unwrapped(
        self, paths: pa.LargeStringArray, where: np.ndarray | None
    ) -> tuple[Files, pa.LargeStringArray, None, None, pa.LargeStringArray]:
        """For `Identity`: the store of files, paths, twice nothing, and the file of each image."""
        assert where is not None
        names = zip(paths.to_pylist(), where[:, 0].tolist())
        files = [path if number == WHOLE else file_of(path) for path, number in names]
        return self.files, paths, None, None, pa.array(files, pa.large_string())

    def _video(self, path: str) -> "_Video":
        if (file := on_disk(self.files, path)) is None:
            raise BadImage("a video at an address: download it")
        return _opened(file)


def named(path: str) -> tuple[str, int | None] | None:
    """The video that a path names, and the number of its frame, None for all; None for no video."""
    match = _FRAME.fullmatch(path)
    return None if match is None else (match[1], None if match[2] is None else int(match[2]))


def file_of(path: str) -> str:
    """The path of the video that a frame is of."""
    return path.rpartition("#")[0]


# ---------------------------------------------------------------- open videos
class _Video:
    """An open video, of one thread: its decoder has a position."""

    def __init__(self, file: str) -> None:
        decoders = _torchcodec()
        try:
            # exact: frame k is the k-th that is shown, whatever the header says of rate and length
            self._decoder: Any = decoders.VideoDecoder(
                file, dimension_order="NHWC", seek_mode="exact", device="cpu"
            )
            known = self._decoder.metadata
            self.length = int(known.num_frames or 0)
        except (RuntimeError, ValueError, OSError):
            raise BadImage("a damaged video, or none that FFmpeg reads") from None
        if not self.length:
            raise BadImage("a video without frames")
        if (known.height or 0) * (known.width or 0) > PIXELS:
            raise BadImage(f"a video of over {PIXELS // 10**6} million pixels a frame")

    def frame(self, number: int) -> UInt8[np.ndarray, "h w 3"]:
        if not 0 <= number < self.length:
            raise BadImage(f"the video has no frame {number}, but 0 to {self.length - 1}")
        try:
            pixels = self._decoder.get_frame_at(number).data
        except (RuntimeError, ValueError, IndexError):
            raise BadImage(f"damaged video: frame {number} cannot be decoded") from None
        return np.ascontiguousarray(pixels.numpy())


def _torchcodec() -> Any:
    try:
        from torchcodec import decoders
    except ImportError:
        raise Inaccessible(
            f"torchcodec is not installed: {install_command('torchcodec')} brings it"
        ) from None
    except (RuntimeError, OSError):
        raise Inaccessible("torchcodec finds no FFmpeg: install it (apt-get install ffmpeg)") from None
    return decoders


_own = threading.local()  # of each thread: the process, and its open videos, the latest last


def _opened(file: str) -> _Video:
    """A video, opened once by a thread while it is among the `OPEN` latest. Raises BadImage.

    Threads read other parts of a video, and each would seek anew if they shared its decoder.
    """
    try:
        status = os.stat(file)
    except (OSError, ValueError) as error:  # a name with a zero byte
        raise inaccessible(error) from None
    if not stat.S_ISREG(status.st_mode):
        raise BadImage("not a regular file")
    if getattr(_own, "process", None) != os.getpid():  # a forked process shares its parent's open files
        _own.process, _own.videos = os.getpid(), OrderedDict[tuple[str, int, int], _Video]()
    videos: OrderedDict[tuple[str, int, int], _Video] = _own.videos
    key = (file, status.st_size, status.st_mtime_ns)
    if key not in videos:
        videos[key] = _Video(file)
        while len(videos) > OPEN:
            videos.popitem(last=False)
    videos.move_to_end(key)
    return videos[key]
