"""The model card beside an export, in the form of the Hugging Face hub: README.md with YAML front matter."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omma.core import files
from omma.core.protocols import Backbone, Preprocess
from omma.evaluation import history
from omma.pretraining.folder import EVALUATION
from omma.reporting.results import ReportedEvaluation, ReportedScore
from omma.weights.classifier import Classifier

HEADLINE_K = 20  # neighbours of the k-NN results that are shown
UNKNOWN = "not recorded"


def evaluations(run: Path, digest: str) -> list[ReportedEvaluation]:
    """The evaluations in a run folder of the model with this digest, newest first; none of another model."""
    every = history.read(run / EVALUATION) if run.is_dir() else []
    return [
        ReportedEvaluation.read(each, HEADLINE_K)
        for each in every
        if each.get("digest") == digest and each.get("results")
    ]


def write(
    folder: Path,
    library: str,
    encoder: Backbone,
    preprocess: Preprocess,
    provenance: Mapping[str, Any],
    *,
    pooling: str,
    notes: Sequence[str] = (),
    measured: Sequence[ReportedEvaluation] = (),
    classifier: Classifier | None = None,
    difference: str = "",
) -> None:
    """Write README.md into the folder of an export.

    library: "timm" or "transformers"; pooling: the expression for omma's pooled feature; measured: its
    results table, each figure with its floors (raw pixels, the untrained network) and interval; difference:
    how far the export's features are from omma's.
    """
    head = {
        "library_name": library,
        "pipeline_tag": "image-feature-extraction",
        "tags": ["omma", "image-feature-extraction", *([_method(provenance)] if _method(provenance) else [])],
    }
    sections = [
        _front_matter(head),
        f"# {encoder.name}",
        f"An image encoder of {encoder.dim} features, exported by omma {files.omma_version()} for {library}.",
        "## License",
        "Not chosen yet: the owner of this model fills it in, here and as `license:` above.",
        "## How it was made",
        _origin(provenance),
        "## Use",
        _use(library, encoder, preprocess, pooling, classifier),
        "\n".join(f"- {note}" for note in notes),
        "## Figures",
        *(_figures(measured)),
        *(
            [f"Largest difference from omma's features after reading it back: {difference}."]
            * bool(difference)
        ),
    ]
    (folder / "README.md").write_text("\n\n".join(sections) + "\n", encoding="utf-8")


def _method(provenance: Mapping[str, Any]) -> str:
    return str(provenance.get("method") or "")


def _front_matter(head: Mapping[str, Any]) -> str:
    """YAML, of which JSON's strings and lists are a part."""
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in head.items()]
    return "\n".join(["---", *lines, "# license: fill this in", "---"])


def _origin(provenance: Mapping[str, Any]) -> str:
    """A table of what the model file says of its training."""
    settings = provenance.get("settings") or {}
    init = provenance.get("init") or {}
    seconds = provenance.get("seconds")
    facts = {
        "data": provenance.get("images") and Path(str(provenance["images"])).name,
        "method": _method(provenance),
        "network": provenance.get("model"),
        "started from": init.get("source") and Path(str(init["source"])).name,
        "recipe": provenance.get("recipe"),
        "batch": settings.get("batch"),
        "learning rate": settings.get("lr"),
        "weight decay": settings.get("weight_decay"),
        "image size in training": provenance.get("image_size"),
        "steps": provenance.get("steps"),
        "time": None if seconds is None else f"{float(seconds):.0f} s",
        "precision": provenance.get("precision"),
        "seed": provenance.get("seed"),
    }
    known = {key: value for key, value in facts.items() if value not in (None, "")}
    if not _method(provenance):
        known = {"training": UNKNOWN, **known}
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {_cell(value)} |" for key, value in known.items())])


def _use(
    library: str, encoder: Backbone, preprocess: Preprocess, pooling: str, classifier: Classifier | None
) -> str:
    code = {
        "timm": 'model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()',
        "transformers": 'model = transformers.AutoModel.from_pretrained("FOLDER").eval()',
    }[library]
    size = preprocess.size
    lines = [
        f"```python\nimport torch, {library}\n{code}\n```",
        f"The pooled feature, one vector an image: `{pooling}`. Features of patches are "
        f"{encoder.patch} px apart.",
        f"Images: shorter side {round(size / preprocess.crop_share)} px (bicubic), centre {size} x {size} "
        "px, normalised with the mean and standard deviation in the configuration.",
    ]
    if classifier is not None:
        lines.append(f"It was trained with a classifier of {len(classifier.classes)} classes.")
    return "\n\n".join(lines)


def _figures(measured: Sequence[ReportedEvaluation]) -> list[str]:
    if not measured:
        return ["This model was not evaluated with omma; `omma evaluate` measures it."]
    out = []
    for evaluation in measured:
        title = f"### On {_cell(Path(evaluation.data).name or evaluation.data)}"
        rows = [_row(score) for score in evaluation.scores]
        table = "\n".join(["| | measure | value | 95 % interval |", "|---|---|---|---|", *rows])
        said = [text for text in (evaluation.protocol, evaluation.verdict) if text]
        out += [title, table, *said, *(f"- {note}" for note in evaluation.notes)]
    return out


def _row(score: ReportedScore) -> str:
    cells = (score.subject_name, _measure(score), score.value_text, score.interval_text or "none")
    return f"| {' | '.join(map(_cell, cells))} |"


def _measure(score: ReportedScore) -> str:
    k = next((condition for condition in score.conditions if condition.startswith("k=")), "")
    return f"{score.protocol_name} {k}".strip()


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")
