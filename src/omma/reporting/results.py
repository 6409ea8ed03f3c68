"""Results with their intervals and protocol as text, and how numbers are written."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from omma.evaluation.verdict import MAP

Level = Literal["good", "warn", "bad"]

SUBJECTS = {"pixels": "Raw pixels", "untrained": "Same network, untrained", "trained": "Trained"}
PROTOCOLS = {
    "knn": "k-NN",
    "linear": "Linear",
    "ridge": "Ridge",
    "classifier": "Classifier",
    "zeroshot": "Zero-shot",
    "retrieval": "Retrieval",
    "image-retrieval": "Images:",
}
JSON_ONLY = ("settings", "balanced_accuracy", "majority")  # of a score: too long for small print
SHARES = ("top", "acc", "balanced", "recall", "precision", "f1", "map", "purity", "h_", "crm_top1", "ece")


@dataclass(frozen=True, kw_only=True)
class ReportedScore:
    """One number of the results table.

    low, high: the ends of its 95 % interval, or None; conditions: how it was measured ("k=20"), which becomes
    the table's small print.
    """

    subject: str  # "pixels" | "untrained" | "trained", or any other name
    protocol: str  # "knn", "linear", ...
    metric: str  # "top1", ...
    value: float
    low: float | None = None
    high: float | None = None
    conditions: tuple[str, ...] = ()
    name: str = ""  # of the subject, where SUBJECTS has none

    @classmethod
    def read(cls, entry: Mapping[str, Any]) -> "ReportedScore":
        """From one entry of `omma evaluate --json`; all keys but the common ones become conditions."""
        low, high = entry.get("interval95") or (None, None)
        common = ("subject", "protocol", "metric", "value", "interval95")
        conditions = tuple(
            f"{key}={figure(v) if isinstance(v, float) else v}"
            for key, v in entry.items()
            if key not in (*common, *JSON_ONLY)
        )
        return cls(**{key: entry[key] for key in common[:4]}, low=low, high=high, conditions=conditions)

    @property
    def subject_name(self) -> str:
        return self.name or SUBJECTS.get(self.subject, self.subject)

    @property
    def protocol_name(self) -> str:
        return f"{PROTOCOLS.get(self.protocol, self.protocol)} {self.metric}"

    @property
    def is_share(self) -> bool:
        """Whether the value is a share in [0, 1], which is written in per cent."""
        return self.metric.lower().startswith(SHARES)

    @property
    def value_text(self) -> str:
        return percent(self.value) if self.is_share else figure(self.value)

    @property
    def interval_text(self) -> str:
        """As "60.1 to 62.3", or "" without an interval."""
        if self.low is None or self.high is None:
            return ""
        write = (lambda v: percent(v).removesuffix(" %")) if self.is_share else figure
        return f"{write(self.low)} to {write(self.high)}"


@dataclass(frozen=True, kw_only=True)
class ReportedEvaluation:
    """The results on one set of images.

    verdict: whether training helped, in words; level: the same as a colour, None where nothing was compared;
    protocol: what all results share, in a sentence, "" where it is not known.
    """

    data: str
    scores: Sequence[ReportedScore]
    verdict: str = ""
    level: Level | None = None
    protocol: str = ""
    notes: Sequence[str] = ()
    further: Sequence[ReportedScore] = ()  # further metrics of the trained network
    details: Sequence[Mapping[str, Any]] = ()  # class by class, one entry a protocol (`Detail.to_json`)

    @classmethod
    def read(cls, content: Mapping[str, Any], headline_k: int) -> "ReportedEvaluation":
        """From the content of `omma evaluate --json`, with the k-NN results of one k: the nearest."""
        entries = content["results"]
        ks = {entry["k"] for entry in entries if "k" in entry}
        k = min(ks, key=lambda k: abs(k - headline_k), default=None)
        shown = [entry for entry in entries if entry.get("k", k) == k]
        classified = {entry["protocol"] for entry in shown if entry["metric"] in ("top1", MAP)}
        further = [e for e in shown if e["protocol"] in classified and not _is_headline(e)]
        return cls(
            data=str(content.get("data", "images")),
            scores=[ReportedScore.read(entry) for entry in shown if entry not in further],
            further=[ReportedScore.read(entry) for entry in further if entry["subject"] == "trained"],
            details=content.get("details", ()),
            verdict=str(content.get("verdict", "")),
            level=_level([c for c in content.get("comparisons", ()) if c.get("k", k) == k]),
            protocol=str(content.get("protocol", "")),
            notes=[str(note) for note in content.get("notes", ())],
        )


def _is_headline(entry: Mapping[str, Any]) -> bool:
    """Of a protocol that classifies: top-1, and balanced accuracy where classes are uneven; or mAP."""
    return entry["metric"] in ("top1", MAP) or "majority" in entry


def _level(comparisons: Sequence[Mapping[str, Any]]) -> Level | None:
    """Good if the trained network beats its untrained self by every protocol, bad if it loses by one."""
    intervals = [c["interval95"] for c in comparisons if c.get("against") == "untrained"]
    if not intervals:
        return None
    if any(high < 0 for _, high in intervals):
        return "bad"
    return "good" if all(low > 0 for low, _ in intervals) else "warn"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %" if math.isfinite(share) else "not finite"


def figure(value: float) -> str:
    """A number to about three significant digits: 0.0123, 4.56, 1,234, 12.3k, 1.2e-05."""
    if not math.isfinite(value):
        return "not finite"
    size = abs(value)
    if size >= 999.5e6 or 0 < size < 1e-3:
        return f"{value:.2g}"
    if size >= 999.5e3:
        return f"{value / 1e6:.3g}M"
    if size >= 1e4:
        return f"{value / 1e3:.3g}k"
    if size >= 999.5:
        return f"{value:,.0f}"
    return f"{value:.3g}"
