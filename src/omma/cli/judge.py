"""Commands that evaluate a model: `omma evaluate` and `omma report`."""

import logging
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from omma.cli import early
from omma.cli.shared import (
    As_,
    Column_,
    File_,
    Images_,
    LabelDepth,
    Labelled_,
    Labels_,
    Model_,
    Run_,
    finished,
    fits,
    laid_out,
    out,
    say,
    show,
)
from omma.cli.stages import Stages
from omma.core import files, outputs
from omma.evaluation import check_protocols, metric_groups

Period_ = Annotated[float | None, tyro.conf.arg(metavar="FLOAT")]
log = logging.getLogger(__name__)


def evaluate(
    model: Model_,
    labelled: Labelled_,
    protocol: tuple[str, ...] = (),
    metrics: tuple[str, ...] = (),
    taxonomy: File_ = None,
    confusion: File_ = None,
    report: File_ = None,
    label_depth: LabelDepth = None,
    json: File_ = None,
    train_on: tuple[str, ...] = (),
    test_on: tuple[str, ...] = (),
    group: Column_ = None,
    target: Column_ = None,
    target_period: Period_ = None,
    prompts: File_ = None,
    descriptions: File_ = None,
    merges: File_ = None,
    floors: bool = True,
    curve: Labels_ = None,
    seeds: int = 5,
    adapt: tuple[str, ...] = (),
    architecture: As_ = None,
    allow_partial: bool = False,
    device: str = "auto",
    precision: str = "auto",
    seed: int = 0,
) -> int:
    """Evaluate a model on labelled images, next to raw pixels and the same network untrained.

    Args:
        model: Run folder, weights file, timm:NAME or hf:NAME.
        labelled: Images with class folders or a label column; for retrieval, with captions.
        protocol: knn, linear, ridge; classifier, the model's own; image-retrieval, by label or instance; for
            models with a text tower also zeroshot, retrieval. Without it: knn, linear, and the
            classifier where its classes are those of the images.
        metrics: Further metrics: accuracy, f1, ap, calibration, all; with any, also classes and confusions.
        taxonomy: File with groups of the classes, for how bad mistakes are: columns from order to species,
            parent and child, indented text, JSON (docs/evaluate.md).
        confusion: CSV file for the confusion matrix; of several protocols, each has a file of its own.
        report: HTML page with the figures, the classes and the confusions, with example images; a run's own
            report has them anyway.
        label_depth: Folder that names the class: its level (1: the first, -1: that which holds the image), or
            path for all folders together; docs/input.md says what holds without it.
        train_on: Part to train probes on: COLUMN=VALUE of the table, or path=photo/*; without it, the rest.
        test_on: Part to test on, likewise: domain=sketch.
        group: Column of images that belong together, such as a site: they are on one side of a split, and
            intervals draw whole groups. By default sequence, where the table has it; folder; none.
        target: Instead of labels, a column of numbers (age, dose) that ridge and k-NN regress: R2 and MAE.
        target_period: For --target, the period of an angle, such as 360 for degrees.
        prompts: For zeroshot, a file with one template per line, such as "a photo of a {}."
        descriptions: For zeroshot, a JSON file {"class": ["a sentence", ...]}; with prompts, both are used.
        merges: File with the tokenizer's merges, for published CLIP weights that come without it.
        json: File to write the results to.
        floors: Also evaluate raw pixels and the untrained network, as baselines.
        curve: Instead, what labels are worth: fit classifiers on so many labels a class (1,2,4,8,16), or on
            shares of all labels (1%,10%), and compare them.
        seeds: For --curve, how often each is fitted, with other labelled images.
        adapt: For --curve, what is fitted: prototypes, knn, hinge, linear; lora, vpt, bias, adapter, full,
            scratch (docs/finetune.md).
        architecture: The network that a weights file or folder holds, where omma does not recognise it.
        allow_partial: Accept weights that lack many of the network's parameters.
        device: cpu, cuda or mps.
        precision: fp32 or bf16.
        seed: Seed of splits and of the untrained network's weights.
    """
    early.model(model)
    check_protocols(protocol)
    early.images(labelled)
    metric_groups(metrics)
    for file, option in ((json, "--json"), (confusion, "--confusion"), (report, "--report")):
        if file is not None:
            outputs.check_file(file, option)
    if curve is not None:
        _without_curve(
            protocol=protocol, metrics=metrics, taxonomy=taxonomy, confusion=confusion, report=report,
            prompts=prompts, descriptions=descriptions, merges=merges, target=target,
        )  # fmt: skip
        return _curve(
            model, labelled, json, labels=curve, seeds=seeds, adapters=adapt, label_depth=label_depth,
            train_on=train_on, test_on=test_on, group=group, architecture=architecture,
            allow_partial=allow_partial, device=device, precision=precision, seed=seed,
        )  # fmt: skip
    if adapt:
        raise ValueError("--adapt says what --curve fits: give that too (--curve 1,2,4,8,16)")
    with Stages(f"reading {labelled} ...") as stages:
        from omma.core.device import keep_memory
        from omma.evaluation.detail import primary, write_matrices
        from omma.verbs.evaluate import evaluate as verb

        keep_memory()
        result = verb(
            model, labelled, protocol=protocol, metrics=metrics, taxonomy=taxonomy,
            label_depth=label_depth, train_on=train_on, test_on=test_on, group=group, prompts=prompts,
            descriptions=descriptions, merges=merges, floors=floors, architecture=architecture, target=target,
            target_period=target_period, allow_partial=allow_partial, device=device, precision=precision,
            seed=seed, progress=stages,
        )  # fmt: skip
    _print_evaluation(result)
    if metrics:
        _print_detail(primary(result.details))
    if confusion is not None:
        for file in write_matrices(confusion, result.details):
            say(f"written to {file}")
        if not any(each.confusions.nnz for each in result.details):
            say("no confusion matrix: nothing was classified, or the images have several labels each")
    if json is not None:  # the figures are printed already, whatever becomes of the file
        files.write_json(json, result.to_json())
        say(f"written to {json}")
    if report is not None:
        from omma.verbs.report import report_evaluation

        say(f"written to {report_evaluation(result, labelled, report, label_depth=label_depth)}")
    if (Path(model) / "metrics.jsonl").exists():  # a run folder
        report_beside(model, labelled, seed, label_depth)
    return finished(result)


def _without_curve(**options: Any) -> None:
    """Raise ValueError for options that --curve would not heed."""
    if given := [name for name, value in options.items() if value]:
        raise ValueError(f"--{given[0]} has no meaning with --curve: leave one of them out")


def _curve(model: str, labelled: str, json: Path | None, **options: Any) -> int:
    """`omma evaluate --curve`."""
    with Stages(f"reading {labelled} ...") as stages:
        from omma.core.device import keep_memory
        from omma.verbs.curve import curve as verb

        keep_memory()
        result = verb(model, labelled, json=json, progress=stages, **options)
    say("")
    show(laid_out(*result.table()), out)
    say("")
    for line in (*result.answer(), result.protocol, *result.notes):
        say(line)
    for file in result.files:
        say(f"written to {file}")
    if (Path(model) / "metrics.jsonl").exists():  # a run folder
        report_beside(model, labelled, options["seed"], options["label_depth"])
    return finished(result)


def report(
    run: Run_, images: Images_, domains: Column_ = None, seed: int = 0, label_depth: LabelDepth = None
) -> int:
    """Write a run's report again, with pictures of the given images.

    Args:
        run: Folder of a finished run.
        images: Images, in any form that pretrain accepts.
        domains: Column of the images' table, such as domain: how well do the labels of each of its values
            classify the images of each other?
        seed: Seed of the choice of pictures.
        label_depth: As for evaluate.
    """
    early.model(run)
    early.images(images)
    page = _write_report(run, images, seed, label_depth, f"reading {images} ...", domains)
    return finished({"report": page})


def _write_report(
    run: str, images: str, seed: int, label_depth: LabelDepth, first: str, domains: str | None = None
) -> Path:
    with Stages(first) as stages:
        from omma.verbs.report import report as verb

        page = verb(run, images, seed=seed, label_depth=label_depth, domains=domains, progress=stages)
    say(str(page), "report")
    return page


def report_beside(run: str, images: str, seed: int, label_depth: LabelDepth) -> None:
    """Write the report with the evaluation's figures, which stand whatever becomes of it."""
    from omma.reporting.run_report import not_written

    try:
        _write_report(run, images, seed, label_depth, "drawing the report ...")
    except Exception as error:
        log.debug("the report failed", exc_info=True)
        say(not_written(error, run))


def _print_evaluation(evaluation: Any, console: Console = out) -> None:
    heads, rows = evaluation.table()
    table = laid_out(heads, rows)
    if not fits(table, console):  # intervals below the values
        table = laid_out(heads, [[cell.replace(" (", "\n(", 1) for cell in row] for row in rows])
    say("", console=console)
    show(table, console)
    say("", console=console)
    for line in (evaluation.protocol(), evaluation.verdict(), *evaluation.notes):
        say(line, console=console)


def _print_detail(detail: Any, console: Console = out) -> None:
    """The classes of a protocol, the worst first, and its worst confusions."""
    if detail is None:
        return
    heads, rows = detail.table()
    say(f"\n{detail.title}:", console=console)
    show(laid_out(heads, rows), console)
    for line in detail.sentences():
        say(line, console=console)
