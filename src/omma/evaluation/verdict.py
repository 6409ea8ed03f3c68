"""All scores of one model beside its floors: as JSON, as a table, and as a verdict in words."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from omma.core import notebook
from omma.core.words import count
from omma.evaluation import NAMES, hierarchy, knn, metrics, regression
from omma.evaluation.detail import Detail
from omma.evaluation.leakage import Leakage
from omma.evaluation.score import Score, is_share

SCHEMA = 1
UNPRINTED = (  # with one label an image the micro averages are top-1
    *(f"{name}_micro" for name in metrics.COUNTED),
    *(f"h_{name}_macro" for name in metrics.COUNTED),
)
BALANCED, MAP = "balanced_accuracy", "mAP"  # MAP: what stands for top-1 where images have several labels
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
    details: tuple[Detail, ...] = ()  # class by class, of the trained network
    leakage: Leakage | None = None  # of a split by image, where images belong together

    def to_json(self) -> dict[str, Any]:
        """The content of the file that `--json` writes."""
        leakage = {} if self.leakage is None else {"leakage": self.leakage.to_json()}
        return leakage | {
            "schema": SCHEMA,
            "model": self.model,
            "digest": self.digest,
            "data": self.data,
            "protocol": self.protocol(),
            "verdict": self.verdict(),
            "results": [score.to_json() for score in self.results],
            "comparisons": [{k: v for k, v in asdict(c).items() if v is not None} for c in self.comparisons],
            "details": [each.to_json() for each in self.details],
            "notes": list(self.notes),
            "skipped": [{"path": path, "reason": reason} for path, reason in self.skipped],
        }

    def __repr__(self) -> str:
        return notebook.brief("Evaluation", f"{self.model} on {self.data}: {self.verdict()}")

    def _repr_html_(self) -> str:
        """The table of `omma evaluate`, for a notebook."""
        heads, rows = self.table()
        sentence = " ".join((self.verdict(), self.protocol(), *self.notes))
        return notebook.table(heads, rows, f"{self.model} on {self.data}", sentence)

    def headline(self) -> list[Score]:
        """One score a subject and protocol; for k-NN that of k = 20, or the nearest k of a smaller bank."""
        return [r for r in self.results if r.k is None or r.k == _headline_k(self.results)]

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Column heads and rows as text: protocols down, subjects across, each score with its interval."""
        headline = [r for r in self.headline() if r.metric not in UNPRINTED]
        subjects = [s for s in ("pixels", "untrained", "trained") if any(r.subject == s for r in headline)]
        rows = []
        for protocol, metric in dict.fromkeys((r.protocol, r.metric) for r in headline):
            cells = {r.subject: r for r in headline if (r.protocol, r.metric) == (protocol, metric)}
            first = next(iter(cells.values()))
            shown = first.k and metric in ("top1", BALANCED, MAP)
            name = _row_name(protocol, metric) + (f" (k={first.k}, T={first.T})" if shown else "")
            rows.append([name, *(_cell(cells[s]) if s in cells else "" for s in subjects)])
        top = any(r.metric == "top1" for r in headline)
        return ["top-1, 95 % interval" if top else "95 % interval", *subjects], rows

    def protocol(self) -> str:
        """The conditions that all numbers of the table share, in a sentence."""
        sentences = []
        for r in (r for r in self.results if r.subject == "trained"):
            if (found := self._measured_on(r)) is None:
                continue  # a further metric, on the same images
            data, floor = found
            split = r.split.partition(f": {r.n_train or 0:,} train, ")[0]  # `data` has the numbers
            split += "" if "seed" in split else f", seed {r.seed}"
            how = f"{r.layer} layer, {r.pooling} features in {r.precision}; {r.crop}"
            line = f"{data} ({split}); {how}; {floor}"
            if not any(sentence.startswith(data) for sentence in sentences):  # once a set of images
                balanced = next((x.majority for x in self.results if x.metric == BALANCED), None)
                both = r.majority is not None and balanced is not None
                sentences.append(f"{line} (balanced: {balanced:.1%})" if both else line)
        return "; ".join(sentences)

    def _measured_on(self, r: Score) -> tuple[str, str] | None:
        """The images of a score and what it is without reading them, in words; None for a further metric."""
        parts = f"{r.n_train or 0:,} train and {count(r.n_test, 'test image')}"
        if r.majority is not None:
            data = f"{parts} of {count(r.classes or 0, 'class', 'classes')}"
            return data, f"the best constant answer scores {r.majority:.1%}"
        if r.metric in regression.FITS:
            mae = next(x for x in self.results if (x.subject, x.metric) == (r.subject, "mae"))
            values = f"{regression.NAMES[r.metric]} {r.settings['constant']:.3f}"
            return (
                f"{parts} with numbers in {r.settings['target']}",
                f"the train part's mean scores {values}, MAE {mae.settings['constant']:.4g}",
            )
        if "chance" not in r.settings or r.metric in metrics.NAMES:
            return None
        return _searched(r), f"chance scores {r.settings['chance']:.1%} at {r.metric}"

    def verdict(self) -> str:
        """Whether training helped, claiming no more than the intervals support.

        The first sentence compares with the same network untrained, the second with raw pixels.
        """
        ks = {None, _headline_k(self.results)}
        comparisons = [
            c
            for c in self.comparisons
            if c.k in ks and (c.metric in (None, MAP, *regression.FITS) or _is_first(c.metric))
        ]
        network = [c for c in comparisons if c.against == "untrained"]
        sentences = [f"{_headline(network)}."]
        if pixels := [c for c in comparisons if c.against != "untrained"]:
            proved = any(map(_sign, pixels))
            start = f"Compared with {FLOORS['pixels']}" if proved else _no_difference("pixels")
            sentences.append(f"{start}: {_clauses(pixels)}.")
        return " ".join(sentences)


def _is_first(metric: str | None) -> bool:
    return (metric or "").startswith("recall@1,")


def _searched(score: Score) -> str:
    settings = score.settings
    if "captions" in settings:
        return f"{count(settings['images'], 'image')} and {count(settings['captions'], 'caption')}"
    if "labels" in settings:
        parts = f"{score.n_train or 0:,} train and {count(score.n_test, 'test image')}"
        return f"{parts}, on average with {settings['labels']:.2g} of {score.classes or 0:,} classes"
    queries = count(score.n_test, "query", "queries")
    return f"{queries} of the same {settings['by']} among {count(settings['gallery'], 'other image')}"


def _headline(comparisons: Sequence[Comparison]) -> str:
    """What training changed, by comparisons with the same network untrained."""
    if not comparisons:
        return "No floor was measured, so it is unknown whether training helped"
    better, worse = (list(dict.fromkeys(c.name for c in comparisons if _sign(c) == s)) for s in (1, -1))
    whole = len(set(map(_sign, comparisons))) == 1
    if not better and not worse:
        start = _no_difference("untrained")
    elif whole:
        start = f"Training {'helped' if better else 'harmed'}, compared with {FLOORS['untrained']}"
    else:
        parts = [("helped", better), ("harmed", worse)]
        words = " and ".join(f"{word} by {' and '.join(names)}" for word, names in parts if names)
        start = f"Training {words}, compared with {FLOORS['untrained']}"
    return f"{start}: {_clauses(comparisons)}"


def _no_difference(floor: str) -> str:
    return f"No difference from {FLOORS[floor]} is proved"


def _clauses(comparisons: Sequence[Comparison]) -> str:
    """Each comparison's interval, in words unless no difference is proved by any."""
    signs = list(map(_sign, comparisons))
    words = {1: ": better", 0: ": no difference is proved" if any(signs) else "", -1: ": worse"}
    return "; ".join(
        f"{c.name}{words[sign]} ({100 * c.interval95[0]:+.1f} to {100 * c.interval95[1]:+.1f} points)"
        for c, sign in zip(comparisons, signs, strict=True)
    )


def _sign(comparison: Comparison) -> int:
    """1 if the trained network is better than the floor beyond doubt, -1 if it is worse, else 0."""
    low, high = comparison.interval95
    return int(low > 0) - int(high < 0)


def _headline_k(results: Sequence[Score]) -> int | None:
    return knn.nearest_k(r.k for r in results if r.k is not None)


def _row_name(protocol: str, metric: str) -> str:
    """The name of a table row: the protocol if it measures top-1, else the metric."""
    if metric == MAP:
        return f"{NAMES[protocol]}, mAP"
    if metric == BALANCED:
        return f"{NAMES[protocol]}, balanced"
    if metric == "top1":
        return NAMES[protocol]
    if metric in regression.NAMES:
        return f"{NAMES[protocol]}, {regression.NAMES[metric]}"
    return f"  {metric_name(metric)}" if NAMES[protocol] else metric


def metric_name(metric: str) -> str:
    """In words; a metric without further words as it is."""
    return (metrics.NAMES | hierarchy.NAMES).get(metric, metric)


def _cell(score: Score) -> str:
    low, high = score.interval95
    if not is_share(score.metric):
        return f"{score.value:.3f} ({low:.3f} to {high:.3f})"
    return f"{100 * score.value:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
