"""The report of a finished run: its verdict, scores and curves, and pictures of what the model sees."""

import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omma import weights
from omma.core import duration, files, words
from omma.core.errors import line
from omma.core.progress import StageProgress
from omma.core.protocols import Images
from omma.evaluation import history, knn
from omma.pretraining import resume, retention
from omma.pretraining.events import Event, Note, Stage
from omma.pretraining.folder import CURVE, EVALUATION, SHIFT, RunFolder, flatten
from omma.pretraining.run import Run
from omma.pretraining.saved_method import trained_method
from omma.reporting import (
    charts,
    classifier,
    confusions,
    curve_chart,
    html,
    sections_collection,
    sections_seen,
    shift_page,
    svg,
)
from omma.reporting.gallery import Gallery
from omma.reporting.results import ReportedEvaluation

log = logging.getLogger(__name__)

SCORES = {"top1": "share that is right", "map": "mean average precision"}
# numbers of a step that have a curve of their own, or none
COMMON = {"event", "step", "loss", "lr", "gradient_norm", "images_per_second", "elapsed"}


def write_report(
    folder: RunFolder,
    images: Images,
    seed: int = 0,
    progress: StageProgress | None = None,
    domains: str | None = None,
) -> Path:
    """Write report.html of a finished run, with pictures of `images`, those of them that can be read.

    What cannot be drawn of these images becomes a note. progress: is called with the stage and its images.
    domains: a column of the images' table, whose values are set against each other; raises ValueError where
    they cannot be.
    """
    model, config, lines = weights.load(folder.path), folder.config(), folder.metrics()
    labels_trained = config.get("labels") == "learned"
    notes: list[str] = []
    readings = [entry for entry in lines if entry["event"] in resume.READINGS]
    health: dict[str, Any] = readings[-1] if readings else {"text": "no health reading", "verdict": "warn"}
    if "init" in config and "neighbours_kept" in health and "online_knn_start" not in health:
        notes.append(retention.UNTOLD.capitalize() + ".")
    try:
        stored = history.read(folder.path / EVALUATION)
        current = [each for each in stored if each.get("digest", model.digest) == model.digest]
        evaluations = [ReportedEvaluation.read(each, knn.HEADLINE) for each in current]
        if others := len(stored) - len(current):
            notes.append(
                f"{words.count(others, 'evaluation')} of earlier weights of this run left out: evaluate these"
            )
    except ValueError as error:
        evaluations = []
        notes.append(f"No results: {error}")
    gallery = Gallery(model, images, seed, progress)
    sections = confusions.sections(evaluations[0].details, images) if evaluations else []
    file = folder.finetuned
    fitted = files.read_json(file, "repeat the run's command") if file.exists() else None
    sections = sections if fitted is None else [*classifier.sections(fitted), *sections]
    verdict = _health_verdict(health) if fitted is None else classifier.verdict(fitted)
    sections += sections_seen.sections(gallery, labels_trained, lambda: trained_method(folder), notes)
    sections += sections_collection.sections(gallery, domains, notes)
    if (domain := shift_page.section_of(folder.path / SHIFT, model.digest, notes)) is not None:
        sections.insert(0, domain)
    if (labels := curve_chart.section(folder.path / CURVE, model.digest, notes)) is not None:
        sections.insert(0, labels)
    page = html.page(
        title=folder.path.resolve().name,
        verdicts=[*_evaluation_verdict(evaluations), verdict, *_unjudged(folder, evaluations, fitted)],
        facts=_facts(config, model.provenance),
        evaluations=evaluations,
        sections=sections,
        curves=_curves(lines, labels_trained) if lines else [],
        config=[(key, str(value)) for key, value in flatten(config).items()],
        notes=notes,
    )
    return html.write(folder.report, page)


def report(run: Run) -> None:
    """Write the run's report, with pictures of the images that it is watched on."""
    report_of(run.folder, run.watcher.sample, run.seed, run.listen)


def report_of(folder: RunFolder, images: Images, seed: int, listen: Callable[[Event], None]) -> None:
    """Write a run's report; the model is saved, so whatever fails here is no more than a note."""
    try:
        write_report(folder, images, seed, lambda stage, done, total: listen(Stage(stage, done, total)))
    except Exception as error:
        log.debug("the report failed", exc_info=True)
        listen(Note(not_written(error, folder.path)))


def not_written(error: Exception, run: str | Path) -> str:
    """The line for a report that fails after everything else succeeded."""
    kind = "" if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: "
    return f"the report was not written ({kind}{line(error)}); `omma report {run} IMAGES` tries again"


def _evaluation_verdict(evaluations: Sequence[ReportedEvaluation]) -> list[html.Verdict]:
    """That of the newest evaluation, if there is one."""
    return [html.Verdict(f"Evaluated on {e.data}", e.verdict, e.level) for e in evaluations[:1] if e.verdict]


def _unjudged(
    folder: RunFolder, evaluations: Sequence[ReportedEvaluation], fitted: Any
) -> list[html.Verdict]:
    """Learning is no proof of use: a pretrained model without an evaluation says so."""
    if evaluations or fitted is not None:
        return []
    reason = f"Whether the features tell your classes apart: omma evaluate {folder.path} LABELLED"
    return [html.Verdict("Evaluated with labels", "Not yet", None, reason)]


def _health_verdict(reading: Mapping[str, Any]) -> html.Verdict:
    if reading.get("event") == "holdout":
        return html.Verdict("On held-out images", reading["text"], reading["verdict"])
    sentence, _, reason = reading["text"].partition(":")
    return html.Verdict("Training, read without labels", sentence.capitalize(), reading["verdict"], reason)


def _facts(config: Mapping[str, Any], provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    facts = [
        ("Method", config["method"]),
        ("Model", f"{config['model']} at {config['image_size']} px"),
        ("Images", Path(config["images"]).name),
        ("Steps", f"{provenance.get('steps', 0):,}"),
        ("Time", duration.as_text(provenance.get("seconds", 0))),
    ]
    if "init" in config:
        facts.append(("Started from", Path(config["init"]["source"]).name))
    return facts


def _curves(lines: list[dict[str, Any]], labels_trained: bool) -> list[svg.Svg]:
    """Loss, health, the method's own metrics, and the learning rate."""

    def series(event: str, name: str, label: str | None = None) -> charts.Series:
        points = [(line["step"], line[name]) for line in lines if line["event"] == event and name in line]
        return charts.Series(label or name.replace("_", " "), [x for x, _ in points], [y for _, y in points])

    features = "of the features of the health sample"
    ranks = [series("health", "rank", "RankMe"), series("health", "centred_rank", "centred")]
    spreads = [series("health", "spread", "1 - mean cosine"), series("health", "std", "deviation x sqrt(d)")]
    curves = {f"Effective rank {features}": ranks, f"Spread {features}": spreads}
    if held_out := [line for line in lines if line["event"] == "holdout" and "nll" in line]:
        score = "top1" if "top1" in held_out[-1] else "map"
        curves = {f"Held-out images: {SCORES[score]}": [series("holdout", score)]}
        curves["Held-out images: negative log-likelihood"] = [series("holdout", "nll")]
    if any("online_knn_top1" in line for line in lines):
        title = f"Online k-NN{'' if labels_trained else ' (labels for evaluation only)'}"
        curves[title] = [series("health", "online_knn_top1", "top-1")]
    if any("view_auc" in line for line in lines):
        curves["Views of an image matched among other images"] = [series("health", "view_auc", "share")]
    if any("neighbours_kept" in line for line in lines):
        curves["Nearest neighbours kept since the start"] = [series("health", "neighbours_kept", "share")]
    steps = [line for line in lines if line["event"] == "step"]
    for name in steps[-1] if steps else ():
        if name not in COMMON and not name.endswith("_limit"):
            curves[name.replace("_", " ").capitalize()] = [series("step", name)]
    curves["Learning rate"] = [series("step", "lr")]
    loss = charts.line_chart("Loss", [series("step", "loss")], smooth=True)
    return [loss, *itertools.starmap(charts.line_chart, curves.items())]
