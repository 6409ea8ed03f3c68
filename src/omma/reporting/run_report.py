"""The report of a run: what the model sees, in pictures, beside its figures."""

import json
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
from omma.reporting import charts, html, pictures
from omma.reporting.results import Result
from omma.train import checkpoint

GALLERY = 2000  # images among which neighbours are looked for
QUERIES, NEIGHBOURS = 8, 7
LEFT_TO_JSON = ("settings", "balanced_accuracy", "majority")  # of a result: too much for small print
SHOWN = 8  # images whose attention and reconstruction are drawn


def shown(images: Float[Tensor, "n c s s"], preprocess: Preprocess) -> Float[np.ndarray, "n s s c"]:
    """Normalised images back to values in [0, 1], channels last."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (preprocess.mean, preprocess.std))
    return (images.float().cpu() * std + mean).clamp(0, 1).permute(0, 2, 3, 1).numpy()


def write_report(folder: RunFolder, images: Images, seed: int = 0) -> Path:
    """Write report.html of a finished run; `images`: the gallery that pictures are taken from."""
    model = weights.load(folder.path)
    rows = np.sort(np.random.default_rng(seed).permutation(len(images))[:GALLERY])
    pixels, good, _ = load_batch(images, rows, model.preprocess)
    pixels = pixels[torch.from_numpy(good)]
    labels = _names(images, rows[good])
    config, sections = folder.config(), []
    told = config.get("labels") == "learned"
    if len(pixels) > 1:
        sections.append(_neighbours(model, pixels, labels, told, seed))
    chosen = pixels[torch.from_numpy(np.random.default_rng(seed + 1).permutation(len(pixels))[:SHOWN])]
    if (attention := _attention(model, chosen)) is not None:
        sections.append(attention)
    method = trained_method(folder)
    if method is not None and (section := _reconstructions(method, chosen, model.preprocess, seed)):
        sections.append(section)
    lines = folder.metrics()
    health = [line for line in lines if line["event"] == "health"]
    verdict: dict[str, Any] = health[-1] if health else {"text": "no health reading", "verdict": "warn"}
    facts = [
        ("Method", config["method"]),
        ("Model", f"{config['model']} at {config['image_size']} px"),
        ("Images", Path(config["images"]).name),
        ("Steps", f"{model.provenance.get('steps', 0):,}"),
        ("Time", f"{model.provenance.get('seconds', 0):,.0f} s"),
    ]
    notes = []
    if "init" in config:
        facts.append(("Started from", Path(config["init"]["source"]).name))
        if "neighbours_kept" in verdict and "online_knn_start" not in verdict:
            notes.append(retention.UNTOLD.capitalize() + ".")
    return html.write_report(
        folder.report,
        title=folder.path.name,
        verdict=verdict["text"].split(":")[0].capitalize(),
        level=verdict["verdict"],
        reason=verdict["text"].partition(":")[2].strip(),
        facts=facts,
        results=_results(folder),
        sections=sections,
        curves=_curves(lines, told),
        config=[(key, str(value)) for key, value in flatten(config).items()],
        notes=notes,
    )


def trained_method(folder: RunFolder) -> Method | None:
    """The whole method as the last checkpoint has it; None without one, and if it reconstructs nothing."""
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
    model: weights.Model, pixels: Tensor, labels: list[str] | None, told: bool, seed: int
) -> html.Section:
    """told: has training seen the labels?"""
    features = torch.nn.functional.normalize(monitor.vectors(model.encoder, pixels), dim=1)
    queries = torch.from_numpy(np.random.default_rng(seed).permutation(len(pixels))[:QUERIES])
    similarity = features[queries] @ features.T
    similarity[torch.arange(len(queries)), queries] = -2.0
    best, at = similarity.topk(min(NEIGHBOURS, len(pixels) - 1), dim=1)
    images = shown(pixels, model.preprocess)
    caption = "For each image on the left, those whose features are nearest by cosine, nearest first."
    if labels is not None:
        caption += " Outlined green: the same label; dashed red: another. "
        caption += f"Labels were {'' if told else 'not '}used in training."
    return html.Section(
        title="Nearest neighbours",
        caption=caption,
        pictures=[
            pictures.neighbours(
                images[queries.numpy()],
                images[at.numpy()],
                None if labels is None else [labels[i] for i in queries],
                None if labels is None else [[labels[i] for i in row] for row in at],
                best.numpy(),
            )
        ],
    )


def _attention(model: weights.Model, pixels: Tensor) -> html.Section | None:
    """None for a network that has none."""
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


def _results(folder: RunFolder) -> list[Result]:
    path = folder.path / EVALUATION
    if not path.exists():
        return []
    entries = json.loads(path.read_text(encoding="utf-8"))["results"]
    ks = {entry["k"] for entry in entries if "k" in entry}
    shown_k = knn.HEADLINE if knn.HEADLINE in ks else max(ks, default=None)
    return [
        Result.read({key: value for key, value in entry.items() if key not in LEFT_TO_JSON})
        for entry in entries
        if entry.get("k", shown_k) == shown_k
    ]


def _curves(lines: list[dict[str, Any]], told: bool) -> list[Any]:
    """Loss first, then health, then what the method reports. told: has training seen the labels?"""

    def series(event: str, name: str, label: str | None = None) -> charts.Series:
        points = [(line["step"], line[name]) for line in lines if line["event"] == event and name in line]
        return charts.Series(label or name.replace("_", " "), [x for x, _ in points], [y for _, y in points])

    curves = [charts.line_chart("Loss", [series("step", "loss")], smooth=True)]
    curves.append(
        charts.line_chart(
            "Effective rank of the watched images' features",
            [series("health", "rank", "RankMe"), series("health", "centred_rank", "centred")],
        )
    )
    curves.append(
        charts.line_chart(
            "Spread of the watched images' features",
            [series("health", "spread", "1 - mean cosine"), series("health", "std", "deviation x sqrt(d)")],
        )
    )
    if any("online_knn_top1" in line for line in lines):
        curves.append(
            charts.line_chart(
                f"Online k-NN{'' if told else ' (labels for reading only)'}",
                [series("health", "online_knn_top1", "top-1")],
            )
        )
    if any("neighbours_kept" in line for line in lines):
        kept = series("health", "neighbours_kept", "share")
        curves.append(charts.line_chart("Nearest neighbours kept from the start", [kept]))
    steps = [line for line in lines if line["event"] == "step"]
    common = {"event", "step", "loss", "lr", "gradient_norm", "images_per_second", "elapsed"}
    for name in [k for k in (steps[-1] if steps else {}) if k not in common and not k.endswith("_limit")]:
        curves.append(charts.line_chart(name.replace("_", " ").capitalize(), [series("step", name)]))
    curves.append(charts.line_chart("Learning rate", [series("step", "lr")]))
    return curves
