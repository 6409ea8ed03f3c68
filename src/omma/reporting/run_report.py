"""The report of a finished run: its verdict, scores and curves, and pictures of what the model sees."""

import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from omma import backbones, methods, weights
from omma.backbones.adapters.transfg import Parts
from omma.core import files, words
from omma.core.errors import line
from omma.core.protocols import Context, Images, Key, Method, NoAttention, Preprocess
from omma.data.batches.preprocess import load_batch
from omma.evaluation import history, knn
from omma.features.extract import extract, with_channels
from omma.pretraining import resume, retention
from omma.pretraining.events import Event, Note, Stage
from omma.pretraining.folder import CURVE, EVALUATION, RunFolder, flatten
from omma.pretraining.run import Run
from omma.reporting import charts, classifier, confusions, curve_chart, html, pictures, svg
from omma.reporting.pictures import Grid
from omma.reporting.results import ReportedEvaluation
from omma.train import checkpoint

log = logging.getLogger(__name__)

StageProgress = Callable[[str, int, int], None]  # the current stage, images done, images in total
GALLERY = 2000  # images that neighbours are searched in
QUERIES, NEIGHBOURS = 8, 7
SHOWN = 8  # images whose attention and reconstruction are drawn
SCORES = {"top1": "share that is right", "map": "mean average precision"}
# numbers of a step that have a curve of their own, or none
COMMON = {"event", "step", "loss", "lr", "gradient_norm", "images_per_second", "elapsed"}


def shown(images: Float[Tensor, "n c s s"], preprocess: Preprocess) -> Float[np.ndarray, "n s s c"]:
    """Normalised images back to values in [0, 1], channels last."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (preprocess.mean, preprocess.std))
    return (images.float().cpu() * std + mean).clamp(0, 1).permute(0, 2, 3, 1).numpy()


def write_report(
    folder: RunFolder, images: Images, seed: int = 0, progress: StageProgress | None = None
) -> Path:
    """Write report.html of a finished run, with pictures of `images`, those of them that can be read.

    What cannot be drawn of these images becomes a note. progress: is called with the stage and its images.
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
    gallery = Gallery(model, images, seed)
    sections = confusions.sections(evaluations[0].details, images) if evaluations else []
    file = folder.finetuned
    fitted = files.read_json(file, "repeat the run's command") if file.exists() else None
    sections = sections if fitted is None else [*classifier.sections(fitted), *sections]
    verdict = _health_verdict(health) if fitted is None else classifier.verdict(fitted)
    for title, draw in (
        ("Nearest neighbours", lambda: _neighbours(gallery, labels_trained, progress)),
        ("Attention of the last layer", lambda: _attention(gallery)),
        ("Chosen parts", lambda: _parts(gallery)),
        ("Reconstructions", lambda: _reconstructions(gallery, trained_method(folder))),
    ):
        try:
            grid, caption = draw()
        except (ValueError, OSError, RuntimeError) as error:
            notes.append(f"{title}: not drawn ({line(error)})")
            continue
        if grid is not None:
            sections.append(html.Section(title, caption, [grid]))
    if (labels := curve_chart.section(folder.path / CURVE, model.digest, notes)) is not None:
        sections.insert(0, labels)
    page = html.page(
        title=folder.path.resolve().name,
        verdicts=[*_evaluation_verdict(evaluations), verdict],
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
        ("Time", f"{provenance.get('seconds', 0):,.0f} s"),
    ]
    if "init" in config:
        facts.append(("Started from", Path(config["init"]["source"]).name))
    return facts


@dataclass(frozen=True)
class Gallery:
    """A seeded sample of the images that the pictures show."""

    model: weights.Model
    images: Images
    seed: int

    @cached_property
    def rows(self) -> Int[np.ndarray, "n"]:
        """The sample, in order."""
        return np.sort(np.random.default_rng(self.seed).permutation(len(self.images))[:GALLERY])

    @cached_property
    def shown(self) -> tuple[Tensor, list[str]]:
        """Inputs [n, c, s, s] of the few images whose attention and reconstruction are drawn; their paths."""
        rows = np.random.default_rng(self.seed + 1).permutation(self.rows)[: 4 * SHOWN]  # some may be damaged
        pixels, good = self.read(rows)
        if not good.any():
            raise ValueError(f"none of a sample of {words.count(len(rows), 'image')} can be read")
        rows = rows[good][:SHOWN]
        return pixels[torch.from_numpy(good)][:SHOWN], self.paths(rows)

    def read(self, rows: Int[np.ndarray, "n"]) -> tuple[Tensor, Bool[np.ndarray, "n"]]:
        """The network's inputs, as for features, and which of them could be read."""
        preprocess = self.model.preprocess
        return load_batch(with_channels(self.images, preprocess.channels), rows, preprocess)[:2]

    def paths(self, rows: Int[np.ndarray, "n"]) -> list[str]:
        return [self.images.path(int(row)) for row in rows]

    def labels(self, rows: Int[np.ndarray, "n"]) -> list[str] | None:
        if self.images.labels is None:
            return None
        return [self.images.classes[k] if k >= 0 else "" for k in self.images.labels[rows]]


def trained_method(folder: RunFolder) -> Method | None:
    """The whole method from the last checkpoint; None without one, or if the method reconstructs nothing."""
    config = folder.config()
    file = methods.get(config["method"])
    saved, _ = checkpoint.newest(folder.checkpoints)
    if saved is None or not file.reconstructs:
        return None
    encoder = backbones.build(**weights.load(folder.path).encoder.spec())
    settings = file.Config(**config["settings"]["config"])
    method = file.Method(encoder, settings, Context(image_size=config["image_size"]))
    checkpoint.restore(saved, method, None)
    return method.eval()


def _neighbours(
    gallery: Gallery, labels_trained: bool, progress: StageProgress | None
) -> tuple[Grid | None, str]:
    """labels_trained: whether training used the labels."""
    model, seed = gallery.model, gallery.seed
    features = extract(
        model.encoder,
        gallery.images.subset(gallery.rows),
        model.preprocess,
        progress=partial(progress, "features for the report") if progress else None,
    )
    rows = gallery.rows[features.indices]
    if len(rows) < 2:
        return None, ""
    vectors = torch.nn.functional.normalize(torch.from_numpy(features.vectors), dim=1)
    queries = torch.from_numpy(np.random.default_rng(seed).permutation(len(rows))[:QUERIES])
    similarity = vectors[queries] @ vectors.T
    similarity[torch.arange(len(queries)), queries] = -2.0
    nearest, index = similarity.topk(min(NEIGHBOURS, len(rows) - 1), dim=1)
    table = rows[torch.cat([queries[:, None], index], dim=1).numpy()]  # [queries, 1 + neighbours]
    pixels, _ = gallery.read(table.ravel())
    images = shown(pixels, model.preprocess)
    images = images.reshape(*table.shape, *images.shape[1:])
    paths, labels = gallery.paths(table.ravel()), gallery.labels(table.ravel())
    caption = "For each image on the left, the images with the nearest features by cosine, nearest first."
    if labels is not None:
        caption += " Green outline: the same label; dashed red: another. "
        caption += f"Labels were {'' if labels_trained else 'not '}used in training."

    def split(texts: list[str]) -> tuple[list[str], list[list[str]]]:
        lines = [texts[i : i + table.shape[1]] for i in range(0, len(texts), table.shape[1])]
        return [line[0] for line in lines], [line[1:] for line in lines]

    of_queries, of_neighbours = (None, None) if labels is None else split(labels)
    grid = pictures.neighbours(
        images[:, 0], images[:, 1:], of_queries, of_neighbours, nearest.numpy(), *split(paths)
    )
    return grid, caption


def _attention(gallery: Gallery) -> tuple[Grid | None, str]:
    """No grid for a network without attention."""
    encoder, (pixels, paths) = gallery.model.encoder, gallery.shown
    try:
        maps = encoder.pooled_attention(pixels)
    except NoAttention:
        return None, ""
    rows, columns = encoder.grid(*pixels.shape[-2:])
    grids = maps.float().unflatten(-1, (rows, columns)).numpy()
    grid = pictures.attention(shown(pixels, gallery.model.preprocess), grids, paths=paths)
    return grid, "Where the last layer looks: the mean over its heads, then single heads."


def _parts(gallery: Gallery) -> tuple[Grid | None, str]:
    """No grid for a network that chooses none."""
    encoder, (pixels, paths) = gallery.model.encoder, gallery.shown
    if not isinstance(encoder, Parts):
        return None, ""
    scores = encoder.part_scores(pixels).float().unflatten(-1, encoder.grid(*pixels.shape[-2:])).numpy()
    images, boxes = shown(pixels, gallery.model.preprocess), encoder.boxes(pixels).numpy()
    caption = (
        "Besides the class token, only these patches reach the last block: of each head the one with the "
        "highest score, which is the product of the earlier layers' attention (mean over the heads at right)."
    )
    return pictures.parts(images, boxes, scores, paths), caption


def _reconstructions(gallery: Gallery, method: Method | None) -> tuple[Grid | None, str]:
    """No grid for a method that reconstructs nothing."""
    pixels, paths = gallery.shown
    key = Key(gallery.seed, np.zeros(len(pixels), np.int64), np.arange(len(pixels)))
    made = None if method is None else method.reconstruct(pixels, key)
    if made is None:
        return None, ""
    original, visible = shown(pixels, gallery.model.preprocess), None
    if made.hidden is not None:
        visible = original.copy()
        visible[made.hidden.cpu().numpy()] = np.nan
    predicted = shown(made.images, gallery.model.preprocess)
    return pictures.reconstructions(original, visible, predicted, paths), made.caption


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
