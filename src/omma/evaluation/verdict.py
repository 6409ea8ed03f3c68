"""All results of one model beside its floors: as JSON, as a table, and as a verdict in words."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from omma.evaluation import knn
from omma.evaluation.result import Result

SCHEMA = 1
NAMES = {
    "knn": "k-NN",
    "linear": "linear probe",
    "ridge": "ridge probe",
    "zeroshot": "zero-shot",
    "retrieval": "",
}
FLOORS = {"untrained": "the same network untrained", "pixels": "raw pixels"}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The trained network against a floor, over the same test images."""

    protocol: str
    against: str  # "untrained" | "pixels"
    k: int | None
    difference: float  # in top-1
    interval95: tuple[float, float]  # paired bootstrap over the test images
    metric: str | None = None  # None: top-1

    @property
    def name(self) -> str:
        return _named(self.protocol, self.metric or "top1")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All results of one model on one set of labelled images."""

    model: str
    digest: str  # of the weights
    data: str
    results: tuple[Result, ...]
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...]  # lines that a reader of the numbers should see
    skipped: tuple[tuple[str, str], ...] = field(repr=False)  # (path, reason) of images not used

    def to_json(self) -> dict[str, Any]:
        """What `--json` writes."""
        return {
            "schema": SCHEMA,
            "model": self.model,
            "digest": self.digest,
            "data": self.data,
            "results": [result.to_json() for result in self.results],
            "comparisons": [{k: v for k, v in asdict(c).items() if v is not None} for c in self.comparisons],
            "notes": list(self.notes),
            "skipped": [{"path": path, "reason": reason} for path, reason in self.skipped],
        }

    def headline(self) -> list[Result]:
        """One result a subject and protocol: for k-NN that of k = 20, or of the cap of a smaller bank."""
        return [r for r in self.results if r.k is None or r.k == _headline_k(self.results)]

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Column heads and rows, as text: a row a protocol, a column a subject, top-1 with its interval."""
        best = self.headline()
        subjects = [s for s in ("pixels", "untrained", "trained") if any(r.subject == s for r in best)]
        rows = []
        for protocol, metric in dict.fromkeys((r.protocol, r.metric) for r in best):
            cells = {r.subject: r for r in best if (r.protocol, r.metric) == (protocol, metric)}
            any_ = next(iter(cells.values()))
            name = _named(protocol, metric) + (f" (k={any_.k}, T={any_.T})" if any_.k else "")
            rows.append([name, *(_cell(cells[s]) if s in cells else "" for s in subjects)])
        top = any(r.metric == "top1" for r in best)
        return ["top-1, 95 % interval" if top else "95 % interval", *subjects], rows

    def protocol(self) -> str:
        """The conditions that all numbers of the table share, in a sentence."""
        said = []
        for r in (r for r in self.results if r.subject == "trained"):
            if r.majority is not None:
                asked = f"{r.n_train:,} train and {r.n_test:,} test images of {r.classes} classes"
                floor = f"always answering the commonest class scores {r.majority:.1%}"
            else:
                asked = f"{r.settings['images']:,} images and {r.settings['captions']:,} captions"
                floor = f"chance scores {r.settings['chance']:.1%} at {r.metric}"
            how = f"{r.layer} layer, {r.pooling} features in {r.precision}; {r.crop}"
            line = f"{asked} ({r.split}, seed {r.seed}); {how}; {floor}"
            if not any(each.startswith(asked) for each in said):  # once a set of images
                said.append(line)
        return "; ".join(said)

    def verdict(self) -> str:
        """Did training help? In words that the intervals allow."""
        ks = {None, _headline_k(self.results)}
        comparisons = [
            c for c in self.comparisons if c.k in ks and (c.metric or "recall@1,")[:9] == "recall@1,"
        ]
        if not comparisons:
            return "No floor was measured, so nothing says whether training helped."
        said = []
        for c in comparisons:
            low, high = (f"{100 * x:+.1f}" for x in c.interval95)
            word = "better than" if c.interval95[0] > 0 else "worse than" if c.interval95[1] < 0 else None
            word = word or "not distinguishable from"
            said.append(f"{c.name}: {word} {FLOORS[c.against]} ({low} to {high} points)")
        if all(c.interval95[0] > 0 for c in comparisons):
            start = "Training helped"
        elif any(c.interval95[0] > 0 for c in comparisons):
            start = "Training helped in part"
        else:
            start = "No sign that training helped"
        return f"{start}. {'; '.join(said)}."


def _headline_k(results: Sequence[Result]) -> int | None:
    ks = [r.k for r in results if r.k is not None]
    return min(ks, key=lambda k: abs(k - knn.HEADLINE), default=None)


def _named(protocol: str, metric: str) -> str:
    """As a table's row is called: the protocol where that gives top-1, else what is measured."""
    return NAMES[protocol] if metric == "top1" else metric


def _cell(result: Result) -> str:
    low, high = result.interval95
    return f"{100 * result.value:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
