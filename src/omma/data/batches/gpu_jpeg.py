"""JPEGs decoded on a GPU (`--decode gpu`): workers read files, the training process decodes and cuts.

The decoder is TorchCodec's, by NVIDIA's nvJPEG (docs/adr/0012). What is not a JPEG that all decoders read
alike is decoded by the workers; what the GPU refuses, by the training process, as it is without this.
"""

import io
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, Num, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from omma.core.errors import line, need
from omma.core.protocols import Crop, Images, Key
from omma.data.batches import augment
from omma.data.batches.skip_bad import RawCrops, Reader
from omma.data.sources.decode import decode, plain_jpeg

# Files (bytes) as upright images on the device: RGB, or one channel where the file or the caller (the flag)
# says grey. RuntimeError where it refuses any of them.
Decode = Callable[[list[UInt8[Tensor, "_"]], bool], list[UInt8[Tensor, "c h w"]]]
LOOKED_AT = 16  # images, to learn whether there are JPEGs


def decoder(device: torch.device) -> Decode:
    """TorchCodec's, tried on a first image. Raises ValueError where it cannot be had."""
    if device.type != "cuda":
        raise ValueError(f"--decode gpu needs an NVIDIA GPU, and this run is on {device}: leave it out")
    found, first = by_torchcodec(device), io.BytesIO()
    Image.new("RGB", (16, 16)).save(first, "JPEG")
    try:
        found([torch.frombuffer(bytearray(first.getvalue()), dtype=torch.uint8)], False)
    except RuntimeError as error:
        raise ValueError(f"--decode gpu: {device} decodes no JPEG ({line(error)}): leave it out") from error
    return found


def by_torchcodec(device: torch.device) -> Decode:
    """Decoding on any device. Raises ValueError without TorchCodec."""
    try:
        decode_jpeg = need("torchcodec.decoders", "torchcodec").decode_jpeg
    except (OSError, AttributeError) as error:
        raise ValueError(
            f"--decode gpu: torchcodec cannot be used ({line(error)}): install 0.17 or later, made for the "
            f"CUDA that torch {torch.__version__} is made for"
        ) from error
    return lambda files, grey: decode_jpeg(files, mode="GRAY" if grey else "UNCHANGED", device=device)


def any_plain(images: Images) -> bool:
    """Is any of a few of these images a JPEG for the GPU?"""
    if not getattr(images, "encoded", False):
        return False
    opener = Opener(images, None)
    some = np.unique(np.linspace(0, len(images) - 1, LOOKED_AT).astype(int))
    return any(isinstance(opener.reader.read(int(i))[0], bytes) for i in some)


class Files(NamedTuple):
    """Some images of a batch, as a worker hands them over."""

    encoded: UInt8[Tensor, "n"]  # JPEGs, one after the other
    sizes: list[int]  # bytes of each image's; 0 where a worker has decoded it
    decoded: list[Num[np.ndarray, "h w c"]]  # these
    key: Key
    read: Int64[np.ndarray, "b"]  # indices of the images that were read
    bad: dict[int, str]


class Opener(Dataset):
    """What a worker does with the key of one part: read files, and decode those that are not for the GPU."""

    def __init__(self, images: Images, at_least: int | None) -> None:
        self.images, self.at_least = images, at_least
        self.reader = Reader(images, self._load)

    def _load(self, i: int) -> bytes | np.ndarray:
        data = self.images.content(i)  # type: ignore[attr-defined]  # of `encoded` collections
        if self.images.channels in (1, 3) and plain_jpeg(data):
            return data
        return decode(data, self.images.channels, self.at_least)

    def __getitem__(self, key: Key) -> Files:
        read = [self.reader.read(int(i)) for i in key.index]
        got = [each for each, _, _ in read]
        files = [each if isinstance(each, bytes) else b"" for each in got]
        return Files(
            encoded=torch.from_numpy(np.frombuffer(bytearray().join(files), np.uint8)),
            sizes=[len(file) for file in files],
            decoded=[each for each in got if isinstance(each, np.ndarray)],
            key=key,
            read=np.array([i for _, i, _ in read]),
            bad={i: self.reader.bad[i] for _, _, passed in read for i in passed},
        )


class OnDevice:
    """What the training process does with a part: decode and cut on the device.

    On a GPU in a stream of its own, so that waiting for the decoder is not waiting for the step before.
    """

    def __init__(self, images: Images, plan: Sequence[Crop], device: torch.device, decode: Decode) -> None:
        self.plan, self.device, self.decode, self.channels = plan, device, decode, images.channels
        self.reader = Reader(images, partial(images.read, at_least=augment.at_least(plan)))
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, files: Files) -> RawCrops:
        with torch.cuda.stream(self.stream):  # pyright: ignore[reportArgumentType]  # None changes nothing
            images, read, bad = self._images(files)
            crops = augment.cut_each(images, self.plan, files.key)
        if self.stream is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self.stream)
            for each in crops:
                each.record_stream(current)
        return RawCrops(crops, files.key, read, bad)

    def _images(self, files: Files) -> tuple[list[Num[Tensor, "c h w"]], np.ndarray, dict[int, str]]:
        """Every image on the device, the indices that they come from, and the bad ones."""
        jpegs = iter(self._decoded([file for file in files.encoded.split(files.sizes) if len(file)]))
        others = iter(files.decoded)
        images, read, bad = [], files.read.copy(), dict(files.bad)
        for place, size in enumerate(files.sizes):
            image = next(jpegs) if size else self._moved(next(others))
            if image is None:
                pixels, read[place], passed = self.reader.read(int(read[place]))
                bad |= {i: self.reader.bad[i] for i in passed}
                image = self._moved(pixels)
            images.append(image.expand(self.channels, -1, -1))  # grey as RGB, where that is wanted
        return images, read, bad

    def _decoded(self, files: list[Tensor]) -> list[Tensor | None]:
        """None for what the decoder refuses, which is found by halves: it says it of all or none."""
        if not files:
            return []
        try:
            return [*self.decode(files, self.channels == 1)]
        except RuntimeError:
            if len(files) == 1:
                return [None]
        half = len(files) // 2
        return self._decoded(files[:half]) + self._decoded(files[half:])

    def _moved(self, pixels: Num[np.ndarray, "h w c"]) -> Num[Tensor, "c h w"]:
        return torch.from_numpy(pixels).permute(2, 0, 1).to(self.device)
