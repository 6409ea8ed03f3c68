"""What methods of sequences and fields read of `Context.tracks`."""

import numpy as np
from jaxtyping import Float, Int

from omma.core.protocols import Context, Frames

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


def pairs(method: str, context: Context, frames: Frames, seed: int) -> Int[np.ndarray, "p 2"]:
    """Rows of earlier and later frames at a distance that `frames` allows, one pair for each earlier frame.

    Of more than 20,000, so many at random. The later frame is drawn at random from those in reach.
    """
    codes = sequences(method, context)
    assert context.tracks is not None and context.tracks.frame is not None
    time = np.asarray(context.tracks.frame, np.float64)
    order = np.lexsort((time, codes))
    rng, most = np.random.default_rng(seed), np.inf if frames.most is None else frames.most
    results = []
    for rows in np.split(order, np.flatnonzero(np.diff(codes[order])) + 1):
        t = time[rows]
        low, high = np.searchsorted(t, t + frames.least), np.searchsorted(t, t + most, side="right")
        first = np.flatnonzero(high > low)
        second = low[first] + (rng.random(len(first)) * (high - low)[first]).astype(np.int64)
        results.append(np.stack([rows[first], rows[second]], axis=1))
    found = np.concatenate(results)
    if not len(found):
        reach = f"{frames.least:g} to {'any' if frames.most is None else f'{frames.most:g}'}"
        raise ValueError(
            f"{method} learns from two frames of a sequence, and none lie {reach} apart (column frame): "
            "choose --method.least and --method.most"
        )
    return found[np.sort(rng.permutation(len(found))[:_PAIRS])]


def standardisation(
    values: Float[np.ndarray, "n d"],
) -> tuple[Float[np.ndarray, "d"], Float[np.ndarray, "d"]]:
    """Mean and deviation of each number over images that have it; deviation 1 where all are equal."""
    mean, deviation = np.nanmean(values, axis=0), np.nanstd(values, axis=0)
    return mean, np.where(deviation > 1e-12, deviation, 1.0)
