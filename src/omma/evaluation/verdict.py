"""All scores of one model beside its floors: as JSON, as a table, and as a verdict in words."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from omma.evaluation import knn
from omma.evaluation.score import Score

SCHEMA = 1
NAMES = {
    "knn": "k-NN",
    "linear": "linear probe",
    "ridge": "ridge probe",
    "zeroshot": "zero-shot",
    "retrieval": "",
}
FLOORS = {"untrained": "the same network untrained", "pixels": "raw pixels"}


@dataclass(frozen=True)
class Comparison:
    """The trained network against a floor, on the same test images."""

    protocol: str
    against: str  # "untrained" | "pixels"
    k: int | None
    difference: float  # in top-1
    interval95: tuple[float, float]  # paired bootstrap over the test images
    metric: str | None = None  # None: top-1

    @property
    def name(self) -> str:
        return _row_name(self.protocol, self.metric or "top1")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All scores of one model on one set of labelled images."""

    model: str
    digest: str  # of the weights
    data: str
    results: tuple[Score, ...]
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...]  # messages that a reader of the numbers should see
    skipped: tuple[tuple[str, str], ...] = field(repr=False)  # (path, reason) of images left out

    def to_json(self) -> dict[str, Any]:
        """The content of the file that `--json` writes."""
        return {
            "schema": SCHEMA,
            "model": self.model,
            "digest": self.digest,
            "data": self.data,
            "protocol": self.protocol(),
            "verdict": self.verdict(),
            "results": [score.to_json() for score in self.results],
            "comparisons": [{k: v for k, v in asdict(c).items() if v is not None} for c in self.comparisons],
            "notes": list(self.notes),
            "skipped": [{"path": path, "reason": reason} for path, reason in self.skipped],
        }

    def headline(self) -> list[Score]:
        """One score a subject and protocol; for k-NN that of k = 20, or the nearest k of a smaller bank."""
        return [r for r in self.results if r.k is None or r.k == _headline_k(self.results)]

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Column heads and rows as text: protocols down, subjects across, each score with its interval."""
        headline = self.headline()
        subjects = [s for s in ("pixels", "untrained", "trained") if any(r.subject == s for r in headline)]
        rows = []
        for protocol, metric in dict.fromkeys((r.protocol, r.metric) for r in headline):
            cells = {r.subject: r for r in headline if (r.protocol, r.metric) == (protocol, metric)}
            first = next(iter(cells.values()))
            name = _row_name(protocol, metric) + (f" (k={first.k}, T={first.T})" if first.k else "")
            rows.append([name, *(_cell(cells[s]) if s in cells else "" for s in subjects)])
        top = any(r.metric == "top1" for r in headline)
        return ["top-1, 95 % interval" if top else "95 % interval", *subjects], rows

    def protocol(self) -> str:
        """The conditions that all numbers of the table share, in a sentence."""
        sentences = []
        for r in (r for r in self.results if r.subject == "trained"):
            if r.majority is not None:
                data = f"{r.n_train:,} train and {r.n_test:,} test images of {r.classes} classes"
                floor = f"always predicting the most frequent class scores {r.majority:.1%}"
            else:
                data = f"{r.settings['images']:,} images and {r.settings['captions']:,} captions"
                floor = f"chance scores {r.settings['chance']:.1%} at {r.metric}"
            how = f"{r.layer} layer, {r.pooling} features in {r.precision}; {r.crop}"
            line = f"{data} ({r.split}, seed {r.seed}); {how}; {floor}"
            if not any(sentence.startswith(data) for sentence in sentences):  # once a set of images
                sentences.append(line)
        return "; ".join(sentences)

    def verdict(self) -> str:
        """Whether training helped, claiming no more than the intervals support."""
        ks = {None, _headline_k(self.results)}
        comparisons = [
            c for c in self.comparisons if c.k in ks and (c.metric or "recall@1,")[:9] == "recall@1,"
        ]
        if not comparisons:
            return "No floor was measured, so it is unknown whether training helped."
        clauses = []
        for c in comparisons:
            low, high = (f"{100 * x:+.1f}" for x in c.interval95)
            word = "not distinguishable from"
            if c.interval95[0] > 0:
                word = "better than"
            elif c.interval95[1] < 0:
                word = "worse than"
            clauses.append(f"{c.name}: {word} {FLOORS[c.against]} ({low} to {high} points)")
        if all(c.interval95[0] > 0 for c in comparisons):
            start = "Training helped"
        elif any(c.interval95[0] > 0 for c in comparisons):
            start = "Training helped in part"
        else:
            start = "No sign that training helped"
        return f"{start}. {'; '.join(clauses)}."


def _headline_k(results: Sequence[Score]) -> int | None:
    ks = [r.k for r in results if r.k is not None]
    return min(ks, key=lambda k: abs(k - knn.HEADLINE), default=None)


def _row_name(protocol: str, metric: str) -> str:
    """The name of a table row: the protocol if it measures top-1, else the metric."""
    return NAMES[protocol] if metric == "top1" else metric


def _cell(score: Score) -> str:
    low, high = score.interval95
    return f"{100 * score.value:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
