"""All results of one model beside its floors: as JSON, as a table, and as a verdict in words."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from omma.evaluation import knn
from omma.evaluation.result import Result

SCHEMA = 1
NAMES = {"knn": "k-NN", "linear": "linear probe", "ridge": "ridge probe"}
FLOORS = {"untrained": "the same network untrained", "pixels": "raw pixels"}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The trained network against a floor, over the same test images."""

    protocol: str
    against: str  # "untrained" | "pixels"
    k: int | None
    difference: float  # in top-1
    interval95: tuple[float, float]  # paired bootstrap over the test images


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
        for protocol in dict.fromkeys(r.protocol for r in best):
            cells = {r.subject: r for r in best if r.protocol == protocol}
            any_ = next(iter(cells.values()))
            name = NAMES[protocol] + (f" (k={any_.k}, T={any_.T})" if any_.k else "")
            rows.append([name, *(_cell(cells[s]) for s in subjects)])
        return ["top-1, 95 % interval", *subjects], rows

    def protocol(self) -> str:
        """The conditions that all numbers of the table share, in a sentence."""
        r = next(r for r in self.results if r.subject == "trained")
        return (
            f"{r.n_train:,} train and {r.n_test:,} test images of {r.classes} classes "
            f"({r.split}, seed {r.seed}); "
            f"{r.layer} layer, {r.pooling} features in {r.precision}; {r.crop}; "
            f"always answering the commonest class scores {r.majority:.1%}"
        )

    def verdict(self) -> str:
        """Did training help? In words that the intervals allow."""
        ks = {None, _headline_k(self.results)}
        comparisons = [c for c in self.comparisons if c.k in ks]
        if not comparisons:
            return "No floor was measured, so nothing says whether training helped."
        said = []
        for c in comparisons:
            low, high = (f"{100 * x:+.1f}" for x in c.interval95)
            word = "better than" if c.interval95[0] > 0 else "worse than" if c.interval95[1] < 0 else None
            word = word or "not distinguishable from"
            said.append(f"{NAMES[c.protocol]}: {word} {FLOORS[c.against]} ({low} to {high} points)")
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


def _cell(result: Result) -> str:
    low, high = result.interval95
    return f"{100 * result.value:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
