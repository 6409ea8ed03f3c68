"""Accuracy by number of labels, of several adapters: means with intervals, and what they prove, in words."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import stdtrit

from omma.core import notebook
from omma.core.words import count, enumerated

# floors first; each as a heading and in a sentence
_NAMES = {
    "pixels-prototypes": ("class means, raw pixels", "class means of raw pixels"),
    "pixels-knn": ("k-NN, raw pixels", "k-NN on raw pixels"),
    "pixels-hinge": ("hinge loss, raw pixels", "the hinge loss on raw pixels"),
    "pixels-linear": ("linear, raw pixels", "a linear layer on raw pixels"),
    "scratch": ("from scratch", "training from scratch"),
    "prototypes": ("class means", "class means"),
    "knn": ("k-NN", "k-NN"),
    "hinge": ("hinge loss", "the hinge loss"),
    "linear": ("linear head", "the linear head"),
    "lora": ("LoRA", "LoRA"),
    "vpt": ("VPT", "VPT"),
    "bias": ("bias tuning", "bias tuning"),
    "adapter": ("bottlenecks", "bottleneck adapters"),
    "attentive": ("attentive pooling", "attentive pooling"),
    "transfg": ("TransFG", "TransFG"),
    "full": ("full fine-tuning", "full fine-tuning"),
}
TITLES = {name: title for name, (title, _) in _NAMES.items()}
NAMES = {name: words for name, (_, words) in _NAMES.items()}
REFERENCE, SCRATCH = "linear", "scratch"
PIXELS = "pixels-"  # before the name of what is fitted on raw pixels instead of features
FLOOR = PIXELS + REFERENCE
LEVEL = 0.95


def is_floor(adapter: str) -> bool:
    """Is it fitted on raw pixels?"""
    return adapter.startswith(PIXELS)


@dataclass(frozen=True)
class Labels:
    """How many labels: so many a class, or a share of all."""

    shots: int | None = None
    share: float | None = None

    @classmethod
    def parse(cls, text: str) -> "Labels":
        """From `4` or `1%`; ValueError for anything else."""
        number = text.strip().removesuffix("%")
        if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", number) or not float(number) > 0:
            raise ValueError(
                f"--curve {text}: give numbers of labels a class, such as 1,2,4,8,16, or shares: 1%,10%"
            )
        if text.strip().endswith("%"):
            if float(number) > 100:
                raise ValueError(f"--curve {text}: a share is at most 100%")
            return cls(share=float(number) / 100)
        if "." in number:
            raise ValueError(
                f"--curve {text}: a number of labels a class is a whole number; write 1% for a share"
            )
        return cls(shots=int(number))

    def __str__(self) -> str:
        return str(self.shots) if self.share is None else f"{100 * self.share:g}%"


def parse(text: str) -> tuple[Labels, ...]:
    """The numbers of labels in a text such as `1,2,4,8,16` or `1%,10%`, ascending."""
    every = [Labels.parse(part) for part in re.split(r"[,\s]+", text.strip()) if part]
    if not every or len({label.share is None for label in every}) > 1:
        raise ValueError(f"--curve {text}: give numbers of labels a class, or shares (1%,10%), not both")
    return tuple(sorted(set(every), key=lambda each: (each.shots or 0, each.share or 0)))


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One adapter at one number of labels."""

    adapter: str
    labels: Labels
    images: int  # labelled ones
    correct: Bool[np.ndarray, "s m"]  # a row for each seed, a column for each test image
    groups: Int[np.ndarray, "m"] | None = None  # of the test images, if whole ones are drawn


# ---------------------------------------------------------------- intervals
def interval(
    values: Float[np.ndarray, "s m"], groups: Int[np.ndarray, "m"] | None = None
) -> tuple[float, float, float]:
    """Mean over seeds and images with its 95 % interval, as (mean, low, high).

    Seeds (which images are labelled) and test images are both random, and crossed. The variance is that of
    the seeds' means by their number plus that of the images' means by theirs, which counts the noise of a
    single answer twice and so errs on the wide side; Student's t has Satterthwaite's degrees of freedom.
    groups: of the images; the deviations from the mean are then summed within each.
    """
    seeds, images = values.shape
    mean = float(values.mean())
    terms = [(seeds, values.mean(1).var(ddof=1) / seeds)] if seeds > 1 else []
    own = values.mean(0) - mean
    if groups is not None:
        own = np.bincount(np.unique(groups, return_inverse=True)[1].reshape(-1), own)
    if (n := len(own)) > 1:
        terms.append((n, float(np.square(own).sum()) / images**2 * n / (n - 1)))
    variance = sum(term for _, term in terms)
    if not variance > 0:
        return mean, mean, mean
    freedom = variance**2 / sum(term**2 / (n - 1) for n, term in terms)
    reach = float(stdtrit(freedom, (1 + LEVEL) / 2)) * math.sqrt(variance)
    return mean, mean - reach, mean + reach


def difference(
    a: Bool[np.ndarray, "s m"], b: Bool[np.ndarray, "s m"], groups: Int[np.ndarray, "m"] | None = None
) -> tuple[float, float, float]:
    """accuracy(a) - accuracy(b) with its paired interval: same labelled images, same test images."""
    if a.shape != b.shape:
        raise ValueError(f"paired answers must be of the same seeds and images: {a.shape} and {b.shape}")
    return interval(a.astype(np.float64) - b, groups)


def accuracy(
    correct: Bool[np.ndarray, "s m"], groups: Int[np.ndarray, "m"] | None = None
) -> tuple[float, float, float]:
    """The accuracy with its interval, which stays in [0, 1]."""
    mean, low, high = interval(correct.astype(np.float64), groups)
    return mean, max(low, 0.0), min(high, 1.0)


# ---------------------------------------------------------------- the result
@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One adapter against another at one number of labels."""

    adapter: str
    against: str
    labels: Labels
    difference: float
    interval95: tuple[float, float]

    @property
    def sign(self) -> int:
        """1 where the adapter is better beyond doubt, -1 where it is worse, else 0."""
        low, high = self.interval95
        return int(low > 0) - int(high < 0)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """All adapters at all numbers of labels, on the same test images."""

    model: str
    digest: str  # of its weights
    data: str
    cells: tuple[Cell, ...]
    protocol: str  # what all figures share, in a sentence
    recipes: dict[str, dict[str, Any]]  # how each adapter was trained
    notes: tuple[str, ...] = ()
    files: tuple[str, ...] = ()  # that it was written to

    @property
    def adapters(self) -> list[str]:
        present = {cell.adapter for cell in self.cells}
        return [name for name in NAMES if name in present]

    @property
    def labels(self) -> list[Labels]:
        return list(dict.fromkeys(cell.labels for cell in self.cells))

    def cell(self, adapter: str, labels: Labels) -> Cell:
        return next(cell for cell in self.cells if (cell.adapter, cell.labels) == (adapter, labels))

    def comparisons(self) -> list[Comparison]:
        """Each adapter against the linear head and against training from scratch, where these are there."""
        made = []
        for against in (REFERENCE, SCRATCH):
            for adapter in self.adapters:
                if (
                    against not in self.adapters
                    or adapter == against
                    or (adapter, against) == (SCRATCH, REFERENCE)
                ):
                    continue
                for labels in self.labels:
                    ours, theirs = (self.cell(name, labels) for name in (adapter, against))
                    mean, low, high = difference(ours.correct, theirs.correct, ours.groups)
                    made.append(
                        Comparison(
                            adapter=adapter, against=against, labels=labels,
                            difference=mean, interval95=(low, high),
                        )
                    )  # fmt: skip
        return made

    def answer(self) -> list[str]:
        """What the paired intervals prove; adapters of which the same is true share a sentence."""
        comparisons = self.comparisons()
        sentences: dict[tuple[str, str, str], list[str]] = {}
        for against in (REFERENCE, SCRATCH):
            for adapter in self.adapters:
                signs = [c.sign for c in comparisons if (c.adapter, c.against) == (adapter, against)]
                if signs:
                    one, many = (_claim(self.labels, signs, NAMES[against], s) for s in ("s", ""))
                    sentences.setdefault((against, one, many), []).append(NAMES[adapter])
        return [
            _capital(f"{enumerated(names)} {one if len(names) == 1 else many}.")
            for (_, one, many), names in sentences.items()
        ]

    def __repr__(self) -> str:
        return notebook.brief("Curve", f"{self.model} on {self.data}: {' '.join(self.answer())}")

    def _repr_html_(self) -> str:
        """The table of `omma evaluate --curve`, for a notebook."""
        sentence = " ".join((*self.answer(), self.protocol, *self.notes))
        return notebook.table(*self.table(), f"{self.model} on {self.data}", sentence)

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Column heads and rows as text: adapters down, numbers of labels across."""
        unit = "labels a class" if self.labels[0].share is None else "share of labels"
        heads = [f"top-1 in %; {unit}", *map(str, self.labels)]
        rows = []
        for adapter in self.adapters:
            row = [self.cell(adapter, labels) for labels in self.labels]
            cells = [accuracy(cell.correct, cell.groups) for cell in row]
            rows.append(
                [
                    TITLES[adapter],
                    *(f"{100 * mean:.1f} ± {50 * (high - low):.1f}" for mean, low, high in cells),
                ]
            )
        return heads, rows

    def to_json(self) -> dict[str, Any]:
        """The content of the file that `--json` writes; the same command gives the same content."""
        results = []
        for cell in self.cells:
            mean, low, high = accuracy(cell.correct, cell.groups)
            subject = "pixels" if is_floor(cell.adapter) else "trained"
            results.append(
                {
                    "subject": "scratch" if cell.adapter == SCRATCH else subject,
                    "protocol": cell.adapter,
                    "metric": "top1",
                    "value": mean,
                    "interval95": [low, high],
                    "labels": str(cell.labels),
                    "n_train": cell.images,
                    "n_test": cell.correct.shape[1],
                    "seeds": cell.correct.mean(1).tolist(),
                }
            )
        return {
            "schema": 1,
            "model": self.model,
            "digest": self.digest,
            "data": self.data,
            "protocol": self.protocol,
            "recipes": self.recipes,
            "answer": self.answer(),
            "results": results,
            "comparisons": [
                {
                    "adapter": c.adapter,
                    "against": c.against,
                    "labels": str(c.labels),
                    "difference": c.difference,
                    "interval95": list(c.interval95),
                }
                for c in self.comparisons()
            ],
            "notes": list(self.notes),
        }


# ---------------------------------------------------------------- words
def _claim(labels: Sequence[Labels], signs: Sequence[int], against: str, s: str) -> str:
    """What is true of an adapter at each number of labels, as "beats X from 8 a class on; below, ..."."""
    wins, losses, rest = ([k for k, sign in enumerate(signs) if sign == value] for value in (1, -1, 0))
    if not wins and not losses:
        return f"{'is' if s else 'are'} not proved to differ from {against} at any number of labels"
    parts = []
    if wins:
        parts.append(f"beat{s} {against} {_where(labels, wins)}")
    if losses:
        parts.append(f"lose{s} to {'it' if wins else against} {_where(labels, losses)}")
    claim = " and ".join(parts)
    if not rest:
        return claim
    last, place = len(labels) - 1, "elsewhere"
    if rest[-1] < min(wins + losses):
        place = "below"
    elif rest[0] > max(wins + losses):
        place = "above"
    elif 0 not in rest and last not in rest:
        place = "between"
    return f"{claim}; {place}, no difference is proved"


def _where(labels: Sequence[Labels], at: Sequence[int]) -> str:
    """Some numbers of labels, in words."""
    unit = " a class" if labels[0].share is None else " of the labels"
    last = len(labels) - 1
    if len(at) == len(labels):
        return (
            f"at every number of labels ({labels[0]} to {labels[-1]}{unit})"
            if last
            else f"at {labels[0]}{unit}"
        )
    if at == list(range(at[0], last + 1)):
        return f"from {labels[at[0]]}{unit} on" if at[0] < last else f"at {labels[last]}{unit}"
    if at == list(range(at[-1] + 1)) and len(at) > 1:
        return f"up to {labels[at[-1]]}{unit}"
    return f"at {enumerated([str(labels[k]) for k in at])}{unit}"


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def protocol(split: str, seeds: int, test: int) -> str:
    """What all figures of a curve share."""
    return (
        f"{split}; {count(seeds, 'seed')}, each draws other images to label, those for few among "
        f"those for more, the same for all adapters; {count(test, 'test image')}, on which nothing is "
        "chosen; ± is half of a 95 % interval over seeds and test images"
    )
