"""What methods of sequences and fields read of `Context.tracks`."""

import numpy as np
from jaxtyping import Float, Int

from omma.core.protocols import Context, Frames, Key
from omma.data.batches.frames import Sampler

_PAIRS = 20_000


def sequences(method: str, context: Context) -> Int[np.ndarray, "n"]:
    """The code of each training image's sequence; ValueError without sequences."""
    if context.tracks is None or context.tracks.sequence is None:
        raise ValueError(
            f"{method} learns from sequences: give a table with the columns sequence and frame "
            "(docs/sequences.md)"
        )
    return np.asarray(context.tracks.sequence)


def field(method: str, context: Context, name: str) -> Float[np.ndarray, "n d"]:
    """A field of all training images, in float64; ValueError without it."""
    if context.tracks is None or name not in context.tracks.fields:
        raise ValueError(f"{method} learns from {name}: give a table with that column (docs/sequences.md)")
    return np.asarray(context.tracks.fields[name], np.float64)


def sampler(method: str, context: Context, frames: Frames) -> Sampler:
    """What draws the frames of a sample."""
    codes = sequences(method, context)
    assert context.tracks is not None
    assert context.tracks.frame is not None
    return Sampler(codes, context.tracks.frame, frames)


def pairs(method: str, context: Context, frames: Frames, seed: int) -> Int[np.ndarray, "p 2"]:
    """Rows of frames as samples have them, at most 20,000 of them, at random."""
    draw = sampler(method, context, frames)
    rows = np.flatnonzero(draw.usable())
    rows = np.sort(np.random.default_rng(seed).permutation(rows)[:_PAIRS])
    return draw(Key(seed, np.zeros(len(rows), np.int64), rows))
