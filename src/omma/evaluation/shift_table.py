"""The result of `omma shift`: as tables, as sentences that the intervals support, and as JSON."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from omma.core import notebook
from omma.core.words import count
from omma.evaluation import NAMES
from omma.evaluation.metrics import Figure
from omma.evaluation.shift import Gain, Matrix

SUBJECTS = {"pixels": "raw pixels", "untrained": "untrained", "trained": "trained"}


def percent(figure: Figure) -> str:
    low, high = figure.interval95
    return f"{100 * figure.value:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def points(figure: Figure) -> str:
    low, high = figure.interval95
    return f"{100 * figure.value:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})"


@dataclass(frozen=True, kw_only=True)
class About:
    """What was measured, and how."""

    model: str
    digest: str  # of the weights
    data: str
    features: str  # which, in words
    notes: tuple[str, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()  # (path, reason) of images left out


@dataclass(frozen=True, kw_only=True)
class Shift:
    """What labels of each domain are worth on each other domain."""

    about: About
    by: str  # the column of domains
    domains: tuple[str, ...]
    classes: tuple[str, ...]
    images: Int[np.ndarray, "k"]  # of each domain, tested
    largest: tuple[float, ...]  # of each domain: the share of its largest class
    probe: str  # "linear" or "knn"
    alignment: str  # "" for none
    matrices: tuple[Matrix, ...]
    gains: tuple[Gain, ...]
    split: str  # into images to train and to test on
    files: tuple[str, ...] = ()  # that it was written to

    @property
    def notes(self) -> tuple[str, ...]:
        return self.about.notes

    def matrix(self, subject: str = "trained", alignment: str = "") -> Matrix:
        """That of a subject. Raises StopIteration if there is none."""
        return next(each for each in self.matrices if (each.subject, each.alignment) == (subject, alignment))

    def title(self, matrix: Matrix) -> str:
        """Whose features a matrix is of."""
        return SUBJECTS[matrix.subject] + (f", {matrix.alignment}" if matrix.alignment else "")

    def table(self, matrix: Matrix) -> tuple[list[str], list[list[str]]]:
        """Column heads and rows as text: sources down, targets across."""
        heads = [f"{self.title(matrix)}: top-1 in %", *(f"on {name}" for name in self.domains)]
        rows = []
        for i, name in enumerate(self.domains):
            cells = [
                percent(Figure(float(value), (float(low), float(high))))
                for value, (low, high) in zip(matrix.accuracy[i], matrix.intervals95[i])
            ]
            rows.append([f"trained on {name}", *cells])
        rows.append(["mean of the others", *map(percent, matrix.from_others)])
        rows.append(["largest class", *(f"{100 * share:.1f}" for share in self.largest)])
        return heads, rows

    def summary(self) -> tuple[list[str], list[list[str]]]:
        """Column heads and rows as text: matrices down, their means across."""
        heads = ["mean, 95 % interval", "within", "across", "gap", "worst domain"]
        rows = [
            [
                self.title(m),
                *map(percent, (m.within, m.across, m.gap)),
                f"{self.domains[m.worst]} {percent(m.from_others[m.worst])}",
            ]
            for m in self.matrices
        ]
        return heads, rows

    def protocol(self) -> str:
        """What all figures share, and what was chosen on what."""
        chosen = (
            "the penalty is chosen by accuracy on images held out of the source's train part"
            if self.probe == "linear"
            else "nothing is chosen"
        )
        tested = f"{count(int(self.images.sum()), 'test image')} of {count(len(self.domains), 'domain')}"
        classes = count(len(self.classes), "class", "classes")
        parts = [
            f"{NAMES[self.probe]}, {tested} and {classes} ({self.split}), the same in every row",
            self.about.features,
            f"{chosen}; no label of a target chooses anything",
        ]
        if self.alignment:
            parts.append(
                f"{self.alignment} reads the target's features of images that are not tested, without labels"
            )
        return "; ".join(parts)

    def verdict(self) -> str:
        """The gap, the worst domain, and what training and alignment change, as far as it is proved."""
        own = self.matrix()
        low, high = own.gap.interval95
        if low > 0:
            fall = f"Accuracy falls by {100 * own.gap.value:.1f} points ({100 * low:.1f} to {100 * high:.1f})"
            first = f"{fall} from one domain to another"
        else:
            first = f"No loss from one domain to another is proved (gap {points(own.gap)})"
        worst = own.from_others[own.worst]
        sentences = [
            f"{first}, from {own.within.value:.1%} to {own.across.value:.1%} on average",
            f"The worst is {self.domains[own.worst]}: {percent(worst)} % from the others",
        ]
        for gain in self.gains:
            sentences.append(
                f"{self._name(gain)}: {points(gain.across)} across domains{_proved(gain.across)}"
            )
        return ". ".join(sentences) + "."

    def _name(self, gain: Gain) -> str:
        (_, alignment), (against, _) = gain.of, gain.against
        if alignment:
            return f"{alignment.capitalize()} against no alignment"
        return f"Trained against {SUBJECTS[against]}"

    def to_json(self) -> dict[str, Any]:
        """The content of the file that `--json` writes."""
        return {
            "schema": 1,
            "model": self.about.model,
            "digest": self.about.digest,
            "data": self.about.data,
            "by": self.by,
            "domains": [
                {"name": name, "images": int(n), "largest_class": share}
                for name, n, share in zip(self.domains, self.images, self.largest)
            ],
            "classes": list(self.classes),
            "probe": self.probe,
            "align": self.alignment or None,
            "protocol": self.protocol(),
            "verdict": self.verdict(),
            "matrices": [self._matrix(each) for each in self.matrices],
            "gains": [
                {
                    "of": list(each.of),
                    "against": list(each.against),
                    "across": each.across._asdict(),
                    "cells": each.cells.tolist(),
                    "intervals95": each.intervals95.tolist(),
                }
                for each in self.gains
            ],
            "notes": list(self.notes),
            "skipped": [{"path": path, "reason": reason} for path, reason in self.about.skipped],
        }

    def _matrix(self, each: Matrix) -> dict[str, Any]:
        return {
            "subject": each.subject,
            "align": each.alignment or None,
            "title": self.title(each),
            "accuracy": each.accuracy.tolist(),
            "intervals95": each.intervals95.tolist(),
            "within": each.within._asdict(),
            "across": each.across._asdict(),
            "gap": each.gap._asdict(),
            "from_others": [figure._asdict() for figure in each.from_others],
            "worst": self.domains[each.worst],
            "chosen": dict(each.chosen),
        }

    def __repr__(self) -> str:
        what = f"{self.about.model} on {self.about.data}, by {self.by}"
        return notebook.brief("Shift", f"{what}: {self.verdict()}")

    def _repr_html_(self) -> str:
        """The matrix of the trained network, for a notebook."""
        heads, rows = self.table(self.matrix())
        sentence = " ".join((self.verdict(), self.protocol(), *self.notes))
        return notebook.table(heads, rows, f"{self.about.model} on {self.about.data}, by {self.by}", sentence)


def _proved(figure: Figure) -> str:
    low, high = figure.interval95
    if low > 0:
        return ", better"
    return ", worse" if high < 0 else ", no difference is proved"
