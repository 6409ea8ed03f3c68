"""The report of a finished run: its verdict, scores and curves, and pictures of what the model sees."""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from omma import backbones, methods, weights
from omma.core.protocols import Context, Images, Key, Method, NoAttention, Preprocess
from omma.data.batches.preprocess import load_batch
from omma.evaluation import knn
from omma.pretraining import monitor, retention
from omma.pretraining.folder import EVALUATION, RunFolder, flatten
from omma.reporting import charts, html, pictures, svg
from omma.reporting.results import ReportedScore
from omma.train import checkpoint

GALLERY = 2000  # images that neighbours are searched in
QUERIES, NEIGHBOURS = 8, 7
JSON_ONLY = ("settings", "balanced_accuracy", "majority")  # of a score: too long for small print
SHOWN = 8  # images whose attention and reconstruction are drawn
# numbers of a step that have a curve of their own, or none
COMMON = {"event", "step", "loss", "lr", "gradient_norm", "images_per_second", "elapsed"}


def shown(images: Float[Tensor, "n c s s"], preprocess: Preprocess) -> Float[np.ndarray, "n s s c"]:
    """Normalised images back to values in [0, 1], channels last."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (preprocess.mean, preprocess.std))
    return (images.float().cpu() * std + mean).clamp(0, 1).permute(0, 2, 3, 1).numpy()


def write_report(folder: RunFolder, images: Images, seed: int = 0) -> Path:
    """Write report.html of a finished run, with pictures of `images`."""
    model, config, lines = weights.load(folder.path), folder.config(), folder.metrics()
    labels_trained = config.get("labels") == "learned"
    readings = [line for line in lines if line["event"] == "health"]
    health: dict[str, Any] = readings[-1] if readings else {"text": "no health reading", "verdict": "warn"}
    verdict, _, reason = health["text"].partition(":")
    notes = []
    if "init" in config and "neighbours_kept" in health and "online_knn_start" not in health:
        notes.append(retention.UNTOLD.capitalize() + ".")
    page = html.page(
        title=folder.path.name,
        verdict=verdict.capitalize(),
        level=health["verdict"],
        reason=reason.strip(),
        facts=_facts(config, model.provenance),
        results=_results(folder),
        sections=_sections(folder, model, images, labels_trained, seed),
        curves=_curves(lines, labels_trained),
        config=[(key, str(value)) for key, value in flatten(config).items()],
        notes=notes,
    )
    return html.write(folder.report, page)


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


def _sections(
    folder: RunFolder, model: weights.Model, images: Images, labels_trained: bool, seed: int
) -> list[html.Section]:
    """Neighbours, attention and reconstructions, as far as network and method have them."""
    rows = np.sort(np.random.default_rng(seed).permutation(len(images))[:GALLERY])
    pixels, good, _ = load_batch(images, rows, model.preprocess)
    pixels = pixels[torch.from_numpy(good)]
    chosen = pixels[torch.from_numpy(np.random.default_rng(seed + 1).permutation(len(pixels))[:SHOWN])]
    sections = []
    if len(pixels) > 1:
        sections.append(_neighbours(model, pixels, _names(images, rows[good]), labels_trained, seed))
    if (attention := _attention(model, chosen)) is not None:
        sections.append(attention)
    method = trained_method(folder)
    if method is not None and (section := _reconstructions(method, chosen, model.preprocess, seed)):
        sections.append(section)
    return sections


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
    method.load_state_dict(saved.method)
    return method.eval()


def _names(images: Images, rows: np.ndarray) -> list[str] | None:
    if images.labels is None:
        return None
    return [images.classes[label] if label >= 0 else "" for label in images.labels[rows]]


def _neighbours(
    model: weights.Model, pixels: Tensor, labels: list[str] | None, labels_trained: bool, seed: int
) -> html.Section:
    """labels_trained: whether training used the labels."""
    features = torch.nn.functional.normalize(monitor.vectors(model.encoder, pixels), dim=1)
    queries = torch.from_numpy(np.random.default_rng(seed).permutation(len(pixels))[:QUERIES])
    similarity = features[queries] @ features.T
    similarity[torch.arange(len(queries)), queries] = -2.0
    nearest, index = similarity.topk(min(NEIGHBOURS, len(pixels) - 1), dim=1)
    images = shown(pixels, model.preprocess)
    caption = "For each image on the left, the images with the nearest features by cosine, nearest first."
    if labels is not None:
        caption += " Green outline: the same label; dashed red: another. "
        caption += f"Labels were {'' if labels_trained else 'not '}used in training."
    return html.Section(
        title="Nearest neighbours",
        caption=caption,
        pictures=[
            pictures.neighbours(
                images[queries.numpy()],
                images[index.numpy()],
                None if labels is None else [labels[i] for i in queries],
                None if labels is None else [[labels[i] for i in row] for row in index],
                nearest.numpy(),
            )
        ],
    )


def _attention(model: weights.Model, pixels: Tensor) -> html.Section | None:
    """None for a network without attention."""
    try:
        maps = model.encoder.pooled_attention(pixels)
    except NoAttention:
        return None
    rows, columns = model.encoder.grid(*pixels.shape[-2:])
    grids = maps.float().unflatten(-1, (rows, columns)).numpy()
    return html.Section(
        title="Attention of the last layer",
        caption="Where the last layer looks: the mean over its heads, then single heads.",
        pictures=[pictures.attention(shown(pixels, model.preprocess), grids)],
    )


def _reconstructions(
    method: Method, pixels: Tensor, preprocess: Preprocess, seed: int
) -> html.Section | None:
    """None for a method that reconstructs nothing."""
    key = Key(seed, np.zeros(len(pixels), np.int64), np.arange(len(pixels)))
    made = method.reconstruct(pixels, key)
    if made is None:
        return None
    original, visible = shown(pixels, preprocess), None
    if made.hidden is not None:
        visible = original.copy()
        visible[made.hidden.cpu().numpy()] = np.nan
    pairs = pictures.reconstructions(original, visible, shown(made.images, preprocess))
    return html.Section(title="Reconstructions", caption=made.caption, pictures=[pairs])


def _results(folder: RunFolder) -> list[ReportedScore]:
    path = folder.path / EVALUATION
    if not path.exists():
        return []
    entries = json.loads(path.read_text(encoding="utf-8"))["results"]
    ks = {entry["k"] for entry in entries if "k" in entry}
    shown_k = knn.HEADLINE if knn.HEADLINE in ks else max(ks, default=None)
    return [
        ReportedScore.read({key: value for key, value in entry.items() if key not in JSON_ONLY})
        for entry in entries
        if entry.get("k", shown_k) == shown_k
    ]


def _curves(lines: list[dict[str, Any]], labels_trained: bool) -> list[svg.Svg]:
    """Loss, health, the method's own metrics, and the learning rate."""

    def series(event: str, name: str, label: str | None = None) -> charts.Series:
        points = [(line["step"], line[name]) for line in lines if line["event"] == event and name in line]
        return charts.Series(label or name.replace("_", " "), [x for x, _ in points], [y for _, y in points])

    features = "of the features of the health sample"
    ranks = [series("health", "rank", "RankMe"), series("health", "centred_rank", "centred")]
    spreads = [series("health", "spread", "1 - mean cosine"), series("health", "std", "deviation x sqrt(d)")]
    curves = {f"Effective rank {features}": ranks, f"Spread {features}": spreads}
    if any("online_knn_top1" in line for line in lines):
        title = f"Online k-NN{'' if labels_trained else ' (labels for evaluation only)'}"
        curves[title] = [series("health", "online_knn_top1", "top-1")]
    if any("views_told" in line for line in lines):
        curves["Views of an image told from other images"] = [series("health", "views_told", "share")]
    if any("neighbours_kept" in line for line in lines):
        curves["Nearest neighbours kept since the start"] = [series("health", "neighbours_kept", "share")]
    steps = [line for line in lines if line["event"] == "step"]
    for name in steps[-1] if steps else ():
        if name not in COMMON and not name.endswith("_limit"):
            curves[name.replace("_", " ").capitalize()] = [series("step", name)]
    curves["Learning rate"] = [series("step", "lr")]
    loss = charts.line_chart("Loss", [series("step", "loss")], smooth=True)
    return [loss, *itertools.starmap(charts.line_chart, curves.items())]
