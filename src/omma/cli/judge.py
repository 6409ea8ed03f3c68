"""Commands that evaluate a model: `omma evaluate` and `omma report`."""

from pathlib import Path
from typing import Any

from rich.table import Table

from omma.cli.shared import LabelDepth, Path_, out


def evaluate(
    model: Path_,
    labelled: Path_,
    protocol: tuple[str, ...] = ("knn", "linear"),
    label_depth: LabelDepth = None,
    json: Path | None = None,
    train_on: tuple[str, ...] = (),
    test_on: tuple[str, ...] = (),
    prompts: Path | None = None,
    merges: Path | None = None,
    floors: bool = True,
    allow_partial: bool = False,
    device: str = "auto",
    precision: str = "auto",
    seed: int = 0,
) -> int:
    """Evaluate a model on labelled images, next to raw pixels and the same network untrained.

    Args:
        model: Run folder, weights file, timm:NAME or hf:NAME.
        labelled: Images with class folders or a label column; for retrieval, with captions.
        protocol: knn, linear, ridge; for models with a text tower also zeroshot, retrieval.
        label_depth: Folder that names the class: its level (1: the first, -1: that which holds the image), or
            path for all folders together; docs/input.md says what holds without it.
        train_on: Part to train probes on: COLUMN=VALUE of the table, or path=photo/*; without it, the rest.
        test_on: Part to test on, likewise: domain=sketch.
        prompts: For zeroshot, a file with one template per line, such as "a photo of a {}."
        merges: File with the tokenizer's merges, for published CLIP weights that come without it.
        json: File to write the results to.
        floors: Also evaluate raw pixels and the untrained network, as baselines.
        allow_partial: Accept weights that lack many of the network's parameters.
        device: cpu, cuda or mps.
        precision: fp32 or bf16.
        seed: Seed of splits and of the untrained network's weights.
    """
    from omma.core.device import keep_memory
    from omma.verbs.evaluate import evaluate as verb

    keep_memory()

    with out.status("reading images and computing features"):
        result = verb(
            model, labelled, protocols=protocol, label_depth=label_depth, train_on=train_on, test_on=test_on,
            prompts=prompts, merges=merges, json=json, floors=floors, allow_partial=allow_partial,
            device=device, precision=precision, seed=seed,
        )  # fmt: skip
    _print_evaluation(result)
    if json is not None:
        out.print(f"written to {json}")
    if (Path(model) / "metrics.jsonl").exists():  # a run folder
        try:
            return report(model, labelled, seed, label_depth)
        except OSError as error:  # the figures stand above
            out.print(f"no report: {error}", markup=False)
    return 0


def report(run: Path_, images: Path_, seed: int = 0, label_depth: LabelDepth = None) -> int:
    """Write a run's report again, with pictures of the given images.

    Args:
        run: Run folder.
        images: Images, in any form that pretrain accepts.
        seed: Seed of the choice of pictures.
        label_depth: As for evaluate.
    """
    from omma.verbs.report import report as verb

    out.print(f"report  {verb(run, images, seed=seed, label_depth=label_depth)}", markup=False)
    return 0


def _print_evaluation(evaluation: Any) -> None:
    heads, rows = evaluation.table()
    table = Table()
    for i, name in enumerate(heads):
        table.add_column(name, justify="right" if i else "left")
    for row in rows:
        table.add_row(*row)
    out.print(table)
    for line in (evaluation.protocol(), evaluation.verdict(), *evaluation.notes):
        out.print(line, markup=False)
