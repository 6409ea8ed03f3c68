"""From images to an array of features: in order, decoded while the network computes, and cached."""

import copy
import hashlib
import json
import logging
import math
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy
import torch
from jaxtyping import Float, Int

from omma.core import files
from omma.core.device import cores, to_device
from omma.core.progress import Progress
from omma.core.protocols import Backbone, Features, Images, Inaccessible, Preprocess
from omma.core.words import count
from omma.data.batches.preprocess import load_batch
from omma.data.sources import clips
from omma.data.sources.clips import Clips

log = logging.getLogger(__name__)


CPU = torch.device("cpu")
AHEAD = 2  # batches decoded in advance
FORMAT = 2  # of the cache files; raise it when the features of the same inputs change


class FeatureBatch(NamedTuple):
    """Features of one batch of images."""

    vectors: Float[np.ndarray, "b ..."]  # float32: pooled features, or what else is read of them
    indices: Int[np.ndarray, "b"]  # which images these are
    bad: list[tuple[str, str]]  # (path, reason) of the images of this batch that could not be read


@dataclass(frozen=True)
class FeatureSet:
    """Features of all images that could be read."""

    vectors: Float[np.ndarray, "n d"]  # float32
    indices: Int[np.ndarray, "n"]  # which images these are
    bad: tuple[tuple[str, str], ...] = ()  # (path, reason) of the others
    provenance: dict[str, Any] = field(default_factory=dict)  # model, data, preprocessing, precision


def with_channels(images: Images, channels: int) -> Images:
    """The collection; ValueError if its images cannot be read with this number of channels.

    `load_batch` converts grey to RGB and RGB to grey.
    """
    if images.channels == channels or {images.channels, channels} == {1, 3}:
        return images
    raise ValueError(
        f"the model takes images of {channels} channels, these have {images.channels}; "
        "pretrain a model on images of this kind"
    )


def batch_size(preprocess: Preprocess, device: torch.device) -> int:
    """Images a forward pass: 0.8 million pixels on a CPU, whose caches are small, 32 times that elsewhere.

    That is 16 or 512 images of 224 px, with a maximum of 512 or 4096 images.
    """
    pixels, most = (802_816, 512) if device.type == "cpu" else (25_690_112, 4096)
    return max(1, min(most, pixels // preprocess.size**2))


def prepare(encoder: Backbone, device: torch.device, precision: torch.dtype) -> Backbone:
    """A copy on the device, in evaluation mode, with all weights in `precision`.

    On a CPU with bf16 units this is several times as fast as autocast.
    """
    return copy.deepcopy(encoder).to(device=device, dtype=precision).eval()


def pooled(features: Features) -> torch.Tensor:
    """The pooled features."""
    return features.pooled


def stream(
    network: Backbone,
    images: Images,
    preprocess: Preprocess,
    batch: int | None = None,
    threads: int | None = None,
    of: Callable[[Features], torch.Tensor] = pooled,
    whole: bool = False,
) -> Iterator[FeatureBatch]:
    """Pooled features of all images in order, a batch at a time, so memory does not grow with their number.

    network: from `prepare`. threads: for decoding. of: what is read of the features, [b, ...]. whole: fill
    batches up, so that an image's features do not depend on how many others there are; sums are in another
    order in a smaller batch, and the last bits differ. The features of a clip are the mean over its tiles.
    """
    images = with_channels(images, preprocess.channels)
    if isinstance(images, Clips):
        batch = batch or batch_size(preprocess, next(network.parameters()).device)
        tiles, owner = clips.tiles(images)
        read = stream(network, tiles, preprocess, batch, threads, of, whole)
        yield from _means(read, owner, images, batch)
        return
    first = next(network.parameters())
    device, precision = first.device, first.dtype
    batch = batch or batch_size(preprocess, device)
    for pixels, indices, bad in _batches(images, preprocess, batch, threads):
        vectors = np.zeros((0, network.dim), np.float32)
        if len(indices):
            if whole and len(indices) < batch:
                pixels = torch.cat([pixels, pixels.new_zeros(batch - len(indices), *pixels.shape[1:])])
            with torch.inference_mode():
                read = of(network(to_device(pixels, device, precision)))[: len(indices)]
            vectors = read.float().cpu().numpy()
        yield FeatureBatch(vectors, indices, bad)


def extract(
    encoder: Backbone,
    images: Images,
    preprocess: Preprocess,
    device: torch.device = CPU,
    precision: torch.dtype = torch.float32,
    *,
    batch: int | None = None,
    cache: Path | None = None,
    model_digest: str | None = None,
    progress: Progress | None = None,
) -> FeatureSet:
    """Pooled features of all images; `encoder` is left unchanged, a copy of it is prepared.
    With `cache` (a folder) and `model_digest` (of the weights), features are looked up there by the content
    of model and data and stored atomically once computed. A damaged or foreign file is replaced.
    """
    images = with_channels(images, preprocess.channels)
    provenance = {
        "format": FORMAT,
        "model": model_digest,
        "spec": encoder.described(),
        "preprocess": asdict(preprocess),
        "precision": str(precision).removeprefix("torch."),
        "pooling": "mean over a clip's tiles" if isinstance(images, Clips) else "pooled",
        "data": getattr(images, "fingerprint", None),
        "images": len(images),
    }
    file = None
    if cache is not None and model_digest is not None and provenance["data"] is not None:
        key = hashlib.sha256(json.dumps(provenance, sort_keys=True).encode()).hexdigest()
        file = Path(cache) / f"{key[:32]}.safetensors"
        if (cached := _load(file, provenance)) is not None:
            if progress:
                progress(len(images), len(images))
            return cached
    batches = stream(prepare(encoder, device, precision), images, preprocess, batch)
    features = _collect(batches, len(images), provenance, progress)
    if file is not None and not any(Inaccessible.is_reason(reason) for _, reason in features.bad):
        _store(file, features)
    return features


def pixels(images: Images, preprocess: Preprocess, *, progress: Progress | None = None) -> FeatureSet:
    """The baseline for all features: the preprocessed images themselves, reduced and flattened.

    Cropped and normalised like the model's input, at most 32 pixels a side; fewer for many channels, so that
    at most 4,096 numbers describe an image.
    """
    images = with_channels(images, preprocess.channels)
    side = min(32, preprocess.size, math.isqrt(4096 // preprocess.channels))
    small = replace(preprocess, size=max(side, 1))
    tiles, owner = clips.tiles(images) if isinstance(images, Clips) else (images, np.arange(len(images)))
    batches = (
        FeatureBatch(inputs.flatten(1).float().numpy(), indices, bad)
        for inputs, indices, bad in _batches(tiles, small, 512)
    )
    if isinstance(images, Clips):
        batches = _means(batches, owner, images, 512)
    return _collect(batches, len(images), {"pixels": asdict(small)}, progress)


# ---------------------------------------------------------------- inside
def _batches(
    images: Images, preprocess: Preprocess, batch: int, threads: int | None = None
) -> Iterator[tuple[torch.Tensor, Int[np.ndarray, "b"], list[tuple[str, str]]]]:
    """Normalised batches of the readable images in order; a thread decodes AHEAD batches in advance."""
    threads = threads or min(cores(), 16)

    def load(start: int) -> tuple[torch.Tensor, Int[np.ndarray, "b"], list[tuple[str, str]]]:
        indices = np.arange(start, min(start + batch, len(images)))
        tensor, good, bad = load_batch(images, indices, preprocess, threads)
        named = [(images.path(i), reason) for i, reason in bad]
        return tensor if good.all() else tensor[torch.from_numpy(good)], indices[good], named

    with ThreadPoolExecutor(1) as pool:
        starts = iter(range(0, len(images), batch))
        waiting = [pool.submit(load, start) for _, start in zip(range(AHEAD), starts)]
        try:
            while waiting:
                yield waiting.pop(0).result()
                if (start := next(starts, None)) is not None:
                    waiting.append(pool.submit(load, start))
        finally:
            for future in waiting:
                future.cancel()


def _means(
    batches: Iterator[FeatureBatch], owner: Int[np.ndarray, "t"], images: Clips, size: int
) -> Iterator[FeatureBatch]:
    """Batches of `size` clips from batches of tiles in order: the mean of each clip's vectors.

    owner: the clip of each tile. A clip is bad where any of its tiles is.
    """
    tiles_of = np.bincount(owner, minlength=len(images))
    last = np.cumsum(tiles_of)  # the tiles up to the end of each clip
    sums: dict[int, np.ndarray] = {}
    bad: dict[int, tuple[str, str]] = {}
    done = first = 0
    for batch in batches:
        for vector, clip in zip(batch.vectors, owner[batch.indices].tolist(), strict=True):
            sums[clip] = sums[clip] + vector if clip in sums else vector.astype(np.float64)
        rows = np.arange(done, done + len(batch.indices) + len(batch.bad))
        for tile, (_, reason) in zip(np.setdiff1d(rows, batch.indices).tolist(), batch.bad, strict=True):
            clip = int(owner[tile])
            bad.setdefault(clip, (images.path(clip), reason))
        done += len(rows)
        while first < len(images) and last[min(first + size, len(images)) - 1] <= done:
            here = range(first, min(first + size, len(images)))
            good = [clip for clip in here if clip not in bad]
            means = [(sums[clip] / tiles_of[clip]).astype(np.float32) for clip in good]
            shape = batch.vectors.shape[1:]
            vectors = np.stack(means) if means else np.zeros((0, *shape), np.float32)
            yield FeatureBatch(vectors, np.array(good, np.int64), [bad[clip] for clip in here if clip in bad])
            sums, first = {clip: s for clip, s in sums.items() if clip >= here.stop}, here.stop


def _collect(
    batches: Iterator[FeatureBatch], total: int, provenance: dict[str, Any], progress: Progress | None
) -> FeatureSet:
    vectors, indices, bad, done = [], [], [], 0
    for batch in batches:
        vectors.append(batch.vectors)
        indices.append(batch.indices)
        bad.extend(batch.bad)
        done += len(batch.indices) + len(batch.bad)
        if progress:
            progress(done, total)
    if not any(len(i) for i in indices):
        reason = f"; the first: {bad[0][0]}: {bad[0][1]}" if bad else ""
        raise ValueError(f"none of {count(total, 'image')} can be read{reason}")
    return FeatureSet(np.concatenate(vectors), np.concatenate(indices), tuple(bad), provenance)


def _store(file: Path, features: FeatureSet) -> None:
    """Write the cache file; a folder that cannot be written only costs time later."""
    try:
        files.remove_old(file.parent.glob(".tmp??????"), files.STALE)  # of killed safetensors.save_file
        with files.atomic_write(file) as partial:
            safetensors.numpy.save_file(
                {"vectors": np.ascontiguousarray(features.vectors), "indices": features.indices},
                partial,
                metadata={
                    "provenance": json.dumps(features.provenance),
                    "bad": json.dumps(features.bad),
                    "checksum": _checksum(features.vectors, features.indices),
                },
            )
    except OSError as error:
        log.warning("features not cached in %s: %s", file.parent, error)


def _load(file: Path, provenance: dict[str, Any]) -> FeatureSet | None:
    """The features stored for exactly this provenance, or None."""
    if not file.exists():
        return None
    try:
        with safetensors.safe_open(file, framework="numpy") as opened:
            meta = opened.metadata()
            if json.loads(meta["provenance"]) != json.loads(json.dumps(provenance)):
                return None
            bad = tuple((path, reason) for path, reason in json.loads(meta["bad"]))
            vectors, indices = opened.get_tensor("vectors"), opened.get_tensor("indices")
            if "checksum" in meta and meta["checksum"] != _checksum(vectors, indices):
                raise ValueError("its checksum differs")
            return FeatureSet(vectors, indices, bad, provenance)
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        log.warning("%s is damaged (%s); its features are computed again", file, error)
        return None


def _checksum(*arrays: np.ndarray) -> str:
    value = 0
    for array in arrays:
        value = zlib.crc32(np.ascontiguousarray(array).data, value)
    return str(value)
