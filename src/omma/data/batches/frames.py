"""Which frames of a sequence make a sample: a pure function of (seed, epoch, index).

Frames are drawn among those around an image, a few times until their distances are as asked for; where they
never are, the closest frames that are stand in for them.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Int64

from omma.core.protocols import Crop, Frames, Key
from omma.core.random import Stream, uniform

_TRIES = 8


class Sample(NamedTuple):
    """Which images a step's samples are made of."""

    key: Key  # of positions in the stream
    rows: Int64[np.ndarray, "b f"]  # the images of each sample; of one frame, key.index


def plan(crops: Sequence[Crop], frames: Frames | None) -> tuple[Crop, ...]:
    """The crops of a method that takes frames: each frame is a view. Raises ValueError for count above 1."""
    if frames is None:
        return tuple(crops)
    if any(crop.count != 1 for crop in crops):
        raise ValueError("a method that takes frames has crops of count=1: each frame is a view of its own")
    change = {"frames": frames.count} if frames.together else {"count": frames.count}
    return tuple(dataclasses.replace(crop, **change) for crop in crops)


class Sampler:
    """Draws the frames that go with an image."""

    def __init__(self, sequence: Int[np.ndarray, "n"], frame: Float[np.ndarray, "n"], frames: Frames) -> None:
        """sequence: code of each image's sequence; frame: its place in it, finite."""
        self.frames = frames
        slack = frames.least * 1e-6  # of sums of fractions
        self.least, self.most = frames.least - slack, (frames.most or math.inf) + slack
        self.order = np.lexsort((frame, sequence))  # rows by sequence, then by frame
        self.rank = np.empty_like(self.order)
        self.rank[self.order] = np.arange(len(self.order))
        ordered = sequence[self.order]
        starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
        sizes = np.diff(np.append(starts, len(ordered)))
        self.start, self.end = np.repeat(starts, sizes), np.repeat(starts + sizes, sizes)
        place = frame[self.order].astype(np.float64)
        self.place = place - np.repeat(place[starts], sizes)  # within each sequence, from 0
        # a line on which sequences follow one another; gaps that no sample spans are cut short, since fp64
        # loses the distances of large numbers
        longest = 2 * (frames.most or frames.least)
        gaps = np.diff(self.place, prepend=0.0)
        gaps[starts] = longest
        self.line = np.cumsum(np.minimum(gaps, longest))
        self.follow = self._reach(forward=True), self._reach(forward=False)

    def __call__(self, key: Key) -> Int64[np.ndarray, "b f"]:
        """Rows of the frames of each image's sample, in their order; the image is one of them."""
        count, rank = self.frames.count, self.rank[key.index]
        numbers = uniform(key, Stream.FRAMES, (_TRIES + 1) * count).astype(np.float64)
        draw = self._anywhere if self.frames.most is None else self._chain
        chosen, settled = np.empty((len(rank), count), np.int64), np.zeros(len(rank), bool)
        for k in range(_TRIES):
            drawn = draw(rank, numbers[:, k * count : (k + 1) * count])
            fits = self._fits(drawn) & ~settled
            chosen[fits] = drawn[fits]
            settled |= fits
        if not settled.all():
            chosen[~settled] = self._closest(rank[~settled])[0]
        if self.frames.order == "any":
            turned = np.argsort(numbers[:, -count:], axis=1, kind="stable")
            chosen = np.take_along_axis(chosen, turned, axis=1)
        return self.order[chosen]

    def _anywhere(self, rank: Int[np.ndarray, "b"], u: Float[np.ndarray, "b f"]) -> Int[np.ndarray, "b f"]:
        """Other frames of the sequence, in ascending order; -1 in a sequence of one frame."""
        low, others = self.start[rank], self.end[rank] - self.start[rank] - 1
        drawn = low[:, None] + (u[:, 1:] * others[:, None]).astype(np.int64)
        drawn += drawn >= rank[:, None]  # not the image itself
        drawn[others == 0] = -1
        return np.sort(np.concatenate([rank[:, None], drawn], axis=1), axis=1)

    def _chain(self, rank: Int[np.ndarray, "b"], u: Float[np.ndarray, "b f"]) -> Int[np.ndarray, "b f"]:
        """One frame after another, at distances in the range; the image's place is drawn. -1: no frame."""
        count = self.frames.count
        place = (u[:, 0] * count).astype(np.int64)  # frames that come before the image
        chosen = np.full((len(rank), count), -1)
        rows = np.arange(len(rank))
        chosen[rows, place] = rank
        for k in range(1, count):
            forward = place + k < count  # once the last place is filled, on from the image backwards
            to = np.where(forward, place + k, count - 1 - k)
            last = chosen[rows, np.where(forward, to - 1, to + 1)]
            chosen[rows, to] = self._next(last, forward, u[:, k])
        return chosen

    def usable(self) -> Bool[np.ndarray, "n"]:
        """Which images can be in a sample, with other frames at the distances asked for."""
        fits = np.zeros(len(self.order), bool)
        fits[self.order] = self._closest(np.arange(len(self.order)))[1]
        return fits

    def leading(self) -> Bool[np.ndarray, "n"]:
        """Which images can be the first of a sample's frames, in ascending order."""
        leads = np.empty(len(self.order), bool)
        leads[self.order] = self.follow[0][-1]
        return leads

    def _fits(self, ranks: Int[np.ndarray, "b f"]) -> Bool[np.ndarray, "b"]:
        distance = np.diff(self.place[ranks], axis=1)
        near = (distance >= self.least) & (distance <= self.most)
        return np.asarray(np.concatenate([ranks >= 0, near], axis=1).all(axis=1))

    def _closest(self, rank: Int[np.ndarray, "b"]) -> tuple[Int[np.ndarray, "b f"], Bool[np.ndarray, "b"]]:
        """The closest allowed frames after each image, or before it; and whether there are enough.

        Where there are not, the image itself stands in for those that lack.
        """
        count, (after, before) = self.frames.count, self.follow
        chosen = np.repeat(rank[:, None], count, axis=1)
        enough = np.zeros(len(rank), bool)
        for used in range(count):  # so many of the frames come before the image
            fits = np.flatnonzero(before[used][rank] & after[count - 1 - used][rank] & ~enough)
            enough[fits] = True
            for place in range(used - 1, -1, -1):
                chosen[fits, place] = self._nearest(chosen[fits, place + 1], before[place], forward=False)
            for place in range(used + 1, count):
                allowed = after[count - 1 - place]
                chosen[fits, place] = self._nearest(chosen[fits, place - 1], allowed, forward=True)
        return chosen, enough

    def _reach(self, forward: bool) -> list[Bool[np.ndarray, "n"]]:
        """Of 0, 1, ... count - 1: which frames have so many others after (or before) them, one by one."""
        n, reach = len(self.line), [np.ones(len(self.line), bool)]
        first, end = self._window(np.arange(n), np.full(n, forward))
        for _ in range(self.frames.count - 1):
            number = np.concatenate([[0], np.cumsum(reach[-1])])
            reach.append(number[np.maximum(first, end)] > number[first])
        return reach

    def _nearest(
        self, rank: Int[np.ndarray, "b"], allowed: Bool[np.ndarray, "n"], forward: bool
    ) -> Int[np.ndarray, "b"]:
        """The closest allowed frame after each, or before it, at a distance in the range; there is one."""
        first, end = self._window(rank, np.full(len(rank), forward))
        ranks = np.flatnonzero(allowed)
        return ranks[np.searchsorted(ranks, first) if forward else np.searchsorted(ranks, end) - 1]

    def _next(
        self, rank: Int[np.ndarray, "b"], forward: Bool[np.ndarray, "b"], u: Float[np.ndarray, "b"]
    ) -> Int[np.ndarray, "b"]:
        """A frame after each, or before it, at a distance that is allowed; u in [0, 1), from close to far.

        -1 where there is none.
        """
        first, end = self._window(rank, forward)
        size = np.where(rank >= 0, end - first, 0)
        offset = (u * size).astype(np.int64)
        return np.where(size > 0, np.where(forward, first + offset, end - 1 - offset), -1)

    def _window(
        self, rank: Int[np.ndarray, "b"], forward: Bool[np.ndarray, "b"]
    ) -> tuple[Int[np.ndarray, "b"], Int[np.ndarray, "b"]]:
        """First rank and end of the frames after each, or before it, at distances in the range."""
        line, least, most = self.line[rank], self.least, self.most
        near, far = np.where(forward, line + least, line - least), np.where(forward, line + most, line - most)
        first = np.searchsorted(self.line, np.minimum(near, far), "left")
        end = np.searchsorted(self.line, np.maximum(near, far), "right")
        return np.maximum(first, self.start[rank]), np.minimum(end, self.end[rank])


def samples(keys: Iterator[Key], sampler: Sampler | None) -> Iterator[Sample]:
    """Each step's key with the images that its samples are made of."""
    for key in keys:
        yield Sample(key, key.index[:, None] if sampler is None else sampler(key))
