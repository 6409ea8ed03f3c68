"""JPEGs decoded on a GPU (`--decode gpu`): workers read files, the training process decodes and crops.

The decoder is TorchCodec's, which uses NVIDIA's nvJPEG (docs/adr/0012). Workers decode the files that are not
`plain_jpeg`; the training process decodes on the CPU the files that the GPU decoder rejects.
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
from omma.data.batches.frames import Sample
from omma.data.batches.skip_bad import RawCrops, Reader
from omma.data.sources.decode import decode, plain_jpeg
from omma.data.sources.values import FULL_SCALE, in_units, read_in

# Decodes files (bytes) to upright images on the device: RGB, or one channel if the file is grey or the flag
# is set. Raises RuntimeError if it rejects any of them.
Decode = Callable[[list[UInt8[Tensor, "_"]], bool], list[UInt8[Tensor, "c h w"]]]
SAMPLE = 16  # images checked to learn whether there are JPEGs


def decoder(device: torch.device) -> Decode:
    """TorchCodec's decoder, tested on one image. Raises ValueError if it is not available."""
    if device.type != "cuda":
        raise ValueError(f"--decode gpu needs an NVIDIA GPU, and this run is on {device}: leave it out")
    decode_jpeg, file = by_torchcodec(device), io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG")
    try:
        decode_jpeg([torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)], False)
    except RuntimeError as error:
        raise ValueError(f"--decode gpu: {device} decodes no JPEG ({line(error)}): leave it out") from error
    return decode_jpeg


def by_torchcodec(device: torch.device) -> Decode:
    """TorchCodec's decoder for any device. Raises ValueError without TorchCodec."""
    try:
        decode_jpeg = need("torchcodec.decoders", "torchcodec").decode_jpeg
    except (OSError, AttributeError) as error:
        raise ValueError(
            f"--decode gpu: torchcodec cannot be used ({line(error)}): install 0.17 or later, made for the "
            f"CUDA that torch {torch.__version__} is made for"
        ) from error
    return lambda files, grey: decode_jpeg(files, mode="GRAY" if grey else "UNCHANGED", device=device)


def any_plain(images: Images) -> bool:
    """Whether any image of a small sample is a JPEG for the GPU."""
    if not getattr(images, "encoded", False):
        return False
    opener = Opener(images, None)
    sample = np.unique(np.linspace(0, len(images) - 1, SAMPLE).astype(int))
    return any(isinstance(opener.reader.read(int(i))[0], bytes) for i in sample)


class Files(NamedTuple):
    """A micro-batch of images, as a worker returns them."""

    encoded: UInt8[Tensor, "n"]  # concatenated JPEG files
    sizes: list[int]  # bytes of each image's file; 0 if a worker has decoded it
    decoded: list[Num[np.ndarray, "h w c"]]  # the images that a worker has decoded
    key: Key
    read: Int64[np.ndarray, "b f"]  # indices of the images that were read
    bad: dict[int, str]


class Opener(Dataset):
    """The workers' part: read a micro-batch's files, and decode those that are not for the GPU."""

    def __init__(self, images: Images, at_least: int | None, full_scale: float | None = None) -> None:
        self.images, self.at_least, self.full_scale = images, at_least, full_scale
        self.reader = Reader(images, self._load)

    def _load(self, i: int) -> bytes | np.ndarray:
        data = self.images.content(i)  # type: ignore[attr-defined]  # of `encoded` collections
        if self.images.channels in (1, 3) and plain_jpeg(data):
            return data
        return in_units(decode(data, self.images.channels, self.at_least), self.full_scale, self.images)

    def __getitem__(self, samples: Sample) -> Files:
        contents, read, bad = self.reader.read_all(samples.rows)
        files = [content if isinstance(content, bytes) else b"" for content in contents]
        return Files(
            encoded=torch.from_numpy(np.frombuffer(bytearray().join(files), np.uint8)),
            sizes=[len(file) for file in files],
            decoded=[content for content in contents if isinstance(content, np.ndarray)],
            key=samples.key,
            read=read,
            bad=bad,
        )


class OnDevice:
    """The training process's part: decode and crop a micro-batch on the device.

    On a GPU this runs in its own stream, so that waiting for the decoder does not wait for the previous step.
    """

    def __init__(
        self,
        images: Images,
        plan: Sequence[Crop],
        device: torch.device,
        decode: Decode,
        full_scale: float | None = None,
    ) -> None:
        self.plan, self.device, self.decode, self.channels = plan, device, decode, images.channels
        self.scale = 1.0 if full_scale is None else full_scale / FULL_SCALE["uint8"]  # of what it decodes
        self.reader = Reader(images, partial(read_in, images, full_scale, at_least=augment.at_least(plan)))
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
        """All images on the device, their indices, and the reasons of the bad ones."""
        jpegs = iter(self._decoded([file for file in files.encoded.split(files.sizes) if len(file)]))
        others = iter(files.decoded)
        images, read, bad = [], files.read.ravel().copy(), dict(files.bad)
        for row, size in enumerate(files.sizes):
            image = next(jpegs) if size else self._to_device(next(others))
            if image is None:
                pixels, read[row], skipped = self.reader.read(int(read[row]))
                bad |= {i: self.reader.bad[i] for i in skipped}
                image = self._to_device(pixels)
            images.append(image.expand(self.channels, -1, -1))  # grey becomes RGB in an RGB collection
        return images, read.reshape(files.read.shape), bad

    def _decoded(self, files: list[Tensor]) -> list[Tensor | None]:
        """The images; None for a file that the decoder rejects (bisected, since it rejects whole lists)."""
        if not files:
            return []
        try:
            images = self.decode(files, self.channels == 1)
            return [*images] if self.scale == 1 else [image * self.scale for image in images]
        except RuntimeError:
            if len(files) == 1:
                return [None]
        half = len(files) // 2
        return self._decoded(files[:half]) + self._decoded(files[half:])

    def _to_device(self, pixels: Num[np.ndarray, "h w c"]) -> Num[Tensor, "c h w"]:
        return torch.from_numpy(pixels).permute(2, 0, 1).to(self.device)
