"""What a probe of one domain is worth on another, from features: answers, matrices, and what they differ by.

A probe is trained on each domain (rows) and tested on each (columns). All rows are tested on the same images,
none of which any of the probes has seen, so that a column compares. Whatever a probe chooses, it chooses on
the train part of its own domain [the training-domain validation of Gulrajani & Lopez-Paz 2021, arXiv
2007.01434]; labels of a target are never read.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int

from omma.evaluation import align, confidence, knn, linear
from omma.evaluation.domains import Compared
from omma.evaluation.metrics import Figure
from omma.evaluation.score import Subject
from omma.evaluation.split import Pairs, holdouts

Protocol = Literal["linear", "knn"]
Key = tuple[Subject, str]  # whose features, and how they were aligned: "" or a name of `align.NAMES`
Right = Float[np.ndarray, "k n"]  # 1: the probe of domain k is right about image n; NaN: not tested


class Answers(NamedTuple):
    """What the probes answered."""

    right: Right
    predicted: Int[np.ndarray, "k n"]  # -1: not tested
    chosen: dict[str, list[Any]]  # penalties (or k) of each domain's probe on each target, of the first pair
    # domains without a class of two groups in a train part: their penalties are chosen on held-out images
    by_image: tuple[str, ...] = ()


def answers(
    x: Float[np.ndarray, "n d"],
    field: Compared,
    pairs: Pairs,
    *,
    protocol: Protocol = "linear",
    alignment: str = "",
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Answers:
    """Train a probe on each domain's part of each pair, and test it on the images held out of all domains.

    alignment: change a domain's features to resemble those of each target, by the target's images of the
    pair's train part, which are not tested. On its own domain a probe is not aligned.
    """
    k, labels, done = len(field.names), field.labels, 0
    predicted = np.full((k, len(x)), -1, np.int64)
    chosen: dict[str, list[Any]] = {}
    by_image: dict[str, None] = {}
    for pair, (fit, held_out) in enumerate(pairs):
        parts = [fit[field.domains[fit] == domain] for domain in range(k)]
        tests = [held_out[field.domains[held_out] == domain] for domain in range(k)]
        for source, rows in enumerate(parts):
            groups = None if field.groups is None else field.groups[rows]
            hold, whole = _holdouts(labels[rows], seed, groups) if protocol == "linear" else (None, True)
            if not whole:
                by_image[field.names[source]] = None
            trained = partial(
                _probe, labels=labels[rows], classes=len(field.classes), protocol=protocol, hold=hold,
                seed=seed, device=device,
            )  # fmt: skip
            own = trained(x[rows])
            for target, tested in enumerate(tests):
                probe, test = own, x[tested]
                if alignment and target != source:
                    train, test = align.NAMES[alignment](x[rows], labels[rows], x[parts[target]], test)
                    probe = trained(train)
                predicted[source, tested] = probe.answer(test)
                if not pair:
                    chosen.setdefault(field.names[source], []).append(probe.chosen)
                done += 1
                if progress:
                    progress(done, len(pairs) * k * k)
    right = np.where(predicted < 0, np.nan, predicted == labels)
    return Answers(right, predicted, chosen, tuple(by_image))


def _holdouts(
    labels: Int[np.ndarray, "n"], seed: int, groups: Int[np.ndarray, "n"] | None
) -> tuple[Pairs, bool]:
    """Pairs to choose a penalty by, and whether they hold out whole groups, if there are any."""
    try:
        return holdouts(labels, seed, groups=groups), True
    except ValueError:
        if groups is None:
            raise
        return holdouts(labels, seed), False


class _Probe(NamedTuple):
    answer: Callable[[Float[np.ndarray, "m d"]], Int[np.ndarray, "m"]]  # from features to labels
    chosen: Any  # the penalty, or k


def _probe(
    x: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, "n"],
    classes: int,
    protocol: Protocol,
    hold: Pairs | None,
    seed: int,
    device: torch.device | str,
) -> _Probe:
    """A probe that is trained on the features. hold: pairs to choose the penalty by.

    The linear one scales all dimensions alike: those that barely vary in the source may vary elsewhere.
    """
    if protocol == "knn":
        return _Probe(lambda test: knn.predict(x, labels, test, device=device), min(knn.HEADLINE, len(x)))
    targets = linear.one_hot(labels, classes)
    chosen = linear.choose(x, targets, pairs=hold, seed=seed, device=device, common=True)
    fitted = linear.fit(x, targets, chosen, seed=seed, device=device, common=True)
    missing = ~targets.any(0)
    strength = chosen.get("penalty", chosen.get("rate"))
    return _Probe(lambda test: np.where(missing, -np.inf, fitted(test)).argmax(1), strength)


# ---------------------------------------------------------------- figures
class Matrix(NamedTuple):
    """Accuracies of the probes of each domain (rows) on each (columns), with what follows from them."""

    subject: Subject
    alignment: str  # "" for none
    accuracy: Float[np.ndarray, "k k"]
    intervals95: Float[np.ndarray, "k k 2"]
    within: Figure  # mean of the diagonal
    across: Figure  # mean of the rest
    gap: Figure  # within - across
    from_others: tuple[Figure, ...]  # of each column without its diagonal: what a new domain may expect
    chosen: Mapping[str, list[Any]]  # as in `Answers`

    @property
    def worst(self) -> int:
        """The domain on which probes of the others are worst."""
        return int(np.argmin([each.value for each in self.from_others]))


class Gain(NamedTuple):
    """The difference between two matrices, on the same test images."""

    of: Key
    against: Key
    across: Figure  # of the mean off the diagonal
    cells: Float[np.ndarray, "k k"]
    intervals95: Float[np.ndarray, "k k 2"]


def figures(
    answered: Mapping[Key, Answers], field: Compared, seed: int = 0
) -> tuple[list[Matrix], list[Gain]]:
    """The matrix of each, and the gains of features over floors and of an alignment over none.

    Intervals are percentiles over test images that are drawn with replacement, whole groups where there are
    groups, equally many of each domain; all figures share the draws, so differences are paired. They say
    nothing of other train images.
    """
    tested = np.flatnonzero(~np.isnan(next(iter(answered.values())).right[0]))
    k = len(field.names)
    on = np.eye(k, dtype=bool)
    values, draws = {}, {}
    drawn = list(_draws(field, tested, seed))
    units = np.unique(field.units[tested], return_inverse=True)[1].reshape(-1)
    where = field.domains[tested]
    number = np.array([len(np.unique(units[where == j])) for j in range(k)])
    for key, each in answered.items():
        right = each.right[:, tested]
        values[key] = np.stack([right[:, where == j].mean(1) for j in range(k)], 1)
        draws[key] = np.concatenate([_accuracies(right, where, units, weights, k) for weights in drawn], -1)
    matrices = []
    for key, value in values.items():
        ends = confidence.percentiles(draws[key])
        flat = confidence.opened(ends.reshape(-1, 2), value.ravel(), np.tile(number, k))
        others = [
            Figure(float(value[~on[j], j].mean()), _ends(draws[key][~on[j], j].mean(0))) for j in range(k)
        ]
        within, across = (_mean(value, draws[key], mask) for mask in (on, ~on))
        gap = Figure(within.value - across.value, _ends(draws[key][on].mean(0) - draws[key][~on].mean(0)))
        ends = flat.reshape(k, k, 2)
        chosen = answered[key].chosen
        matrices.append(Matrix(key[0], key[1], value, ends, within, across, gap, tuple(others), chosen))
    gains = []
    for of, against in _compared(answered):
        value, draw = values[of] - values[against], draws[of] - draws[against]
        gains.append(Gain(of, against, _mean(value, draw, ~on), value, confidence.percentiles(draw)))
    return matrices, gains


def _compared(answered: Mapping[Key, Answers]) -> Iterator[tuple[Key, Key]]:
    """Which matrices are set against which: trained against the floors, an alignment against none."""
    own: Key = ("trained", "")
    floors: tuple[Key, ...] = (("untrained", ""), ("pixels", ""))
    yield from ((own, floor) for floor in floors if floor in answered)
    yield from ((key, own) for key in answered if key[1])


def _mean(value: np.ndarray, draw: np.ndarray, mask: np.ndarray) -> Figure:
    return Figure(float(value[mask].mean()), _ends(draw[mask].mean(0)))


def _ends(draw: Float[np.ndarray, "r"]) -> tuple[float, float]:
    low, high = confidence.percentiles(draw)
    return float(low), float(high)


def _draws(
    field: Compared,
    tested: Int[np.ndarray, "m"],
    seed: int,
    rounds: int = confidence.RESAMPLES,
    block: int = 125,
) -> Iterator[Float[np.ndarray, "g b"]]:
    """How often each unit (group or image) is drawn, a column a round.

    Units with images in the same domains are drawn among each other, so no domain is ever without images.
    """
    units = np.unique(field.units[tested], return_inverse=True)[1].reshape(-1)
    present = np.zeros((units.max() + 1, len(field.names)), bool)
    present[units, field.domains[tested]] = True
    strata = np.unique(present, axis=0, return_inverse=True)[1].reshape(-1)
    rng = np.random.default_rng((seed, 0x5F1F))
    members = [np.flatnonzero(strata == each) for each in range(strata.max() + 1)]
    for first in range(0, rounds, block):
        b = min(block, rounds - first)
        weights = np.zeros((len(strata), b), np.float32)
        for rows in members:
            drawn = rng.integers(len(rows), size=(b, len(rows))) + len(rows) * np.arange(b)[:, None]
            weights[rows] = np.bincount(drawn.ravel(), minlength=b * len(rows)).reshape(b, -1).T
        yield weights


def _accuracies(
    right: Float[np.ndarray, "k m"],
    where: Int[np.ndarray, "m"],
    units: Int[np.ndarray, "m"],
    weights: Float[np.ndarray, "g b"],
    k: int,
) -> Float[np.ndarray, "k k b"]:
    """Accuracy of each cell, in each draw. where: the domain of each image; units: what it is drawn with."""
    found = []
    for j in range(k):
        own = where == j
        each = weights[units[own]]
        found.append(right[:, own].astype(np.float32) @ each / each.sum(0))
    return np.stack(found, 1)
