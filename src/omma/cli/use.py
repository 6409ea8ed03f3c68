"""Commands that use a model: `omma embed`, `omma export` and `omma describe`."""

from functools import partial
from typing import Annotated, Any

import tyro

from omma.cli import early
from omma.cli.shared import (
    As_,
    Chosen_,
    Classes_,
    File_,
    Images_,
    LabelDepth,
    Model_,
    Output,
    Place_,
    With_,
    finished,
    say,
    skipped_lines,
)
from omma.cli.stages import Stages
from omma.core import launcher, outputs
from omma.core.words import count


def embed(
    model: Model_,
    images: Images_,
    out: str,
    architecture: As_ = None,
    allow_partial: bool = False,
    label_depth: LabelDepth = None,
    device: str = "auto",
    precision: str = "auto",
    engine: str = "local",
) -> int:
    """Write a table of feature vectors: path, label (if there is one), vector.

    The same command continues where an earlier one was stopped. `torchrun -m omma embed ...` divides the
    images among its processes.

    Args:
        model: Run folder, weights file, timm:NAME or hf:NAME.
        images: Images, in any form that pretrain accepts.
        out: The table to write: .parquet, .csv (a column for each number) or .npz.
        architecture: The network that a weights file or folder holds, where omma does not recognise it.
        allow_partial: Accept weights that lack many of the network's parameters.
        label_depth: Folder that names the class, as for evaluate.
        device: cpu, cuda or mps.
        precision: fp32 or bf16.
        engine: local, or ray to use the machines of a Ray cluster.
    """
    early.model(model)
    early.images(images)
    early.table(out)
    first = launcher.ranks().rank == 0  # of several processes one prints
    console = Output(quiet=not first)
    with Stages(f"reading {images} ...", console) as stages:
        from omma.core.device import keep_memory, share_cores
        from omma.verbs.embed import embed as verb

        keep_memory()
        share_cores()
        result = verb(
            model, images, out, architecture=architecture, allow_partial=allow_partial,
            label_depth=label_depth, device=device, precision=precision, engine=engine,
            progress=partial(stages, "embedding"),
        )  # fmt: skip
    if result.resumed:
        say(f"continued after {count(result.resumed, 'image')} embedded before", console=console)
    for line in result.notes:
        say(line, console=console)
    say(f"{count(result.rows, 'vector')} of {result.dim} dimensions in {out}", console=console)
    skipped_lines(result.bad, console)
    return finished(result)


def export(
    model: Model_,
    format: str,
    out: Place_ = None,
    images: Chosen_ = None,
    architecture: As_ = None,
    allow_partial: bool = False,
    push: Annotated[str | None, tyro.conf.arg(metavar="USER/NAME")] = None,
) -> int:
    """Export a model for other tools; they read it back, and its features are compared with omma's.

    Args:
        model: Run folder, weights file, timm:NAME or hf:NAME.
        format: safetensors, timm, hf (transformers), onnx, openvino or torch (torch.export).
        out: File (.onnx, .xml, .pt2) or folder to write; by default in the run folder.
        images: Images for the comparison; by default those that the model was trained on.
        architecture: The network that a weights file or folder holds, where omma does not recognise it.
        allow_partial: Accept weights that lack many of the network's parameters.
        push: Upload the folder (hf, timm) to this repository of the Hugging Face hub, USER/NAME, with your
            token; a new repository is private.
    """
    early.model(model)
    if images is not None:
        early.images(images)
    with Stages(f"reading {model} ...") as stages:
        from omma.core.device import keep_memory
        from omma.verbs.export import export as verb

        keep_memory()
        stages(f"writing it as {format}, and comparing what is read back")
        format_: Any = format  # the verb refuses unknown formats
        result = verb(
            model, format_, out, images=images, architecture=architecture, allow_partial=allow_partial,
            push=push,
        )  # fmt: skip
    difference = f"{result.difference:.2g}, where features reach {result.scale:.2g}"
    say(f"written to {result.path}")
    say(f"largest difference {difference}; {result.compared}")
    for note in result.notes:
        say(note)
    return finished(result)


def describe(
    classes: Classes_,
    language_model: With_,
    out: str,
    questions: File_ = None,
    answers: int = 10,
    temperature: float = 0.99,
    label_depth: LabelDepth = None,
    device: str = "auto",
    seed: int = 0,
) -> int:
    """Let a language model describe classes, for omma evaluate --protocol zeroshot --descriptions FILE.

    Classes that the file describes already are kept as they are: edit it, and run the command again for those
    that are missing.

    Args:
        classes: Labelled images, or a .txt file with the name of a class on each line.
        language_model: Folder of transformers, .gguf file or hf:NAME.
        out: The JSON file to write: {"class": ["a sentence", ...]}.
        questions: File with a question on each line, {} in place of "a dog"; by default CuPL's five.
        answers: Answers to each question.
        temperature: Of the sampling; 0: the likeliest words, one answer.
        label_depth: Folder that names the class, as for evaluate.
        device: cpu, cuda or mps.
        seed: Seed of the sampling.
    """
    early.images(classes)
    outputs.check_file(out)
    with Stages(f"reading {language_model} ...") as stages:
        from omma.verbs.describe import describe as verb

        result = verb(
            classes, language_model, out, questions=questions, answers=answers, temperature=temperature,
            label_depth=label_depth, device=device, seed=seed, progress=partial(stages, "classes described"),
        )  # fmt: skip
    made = count(result.made, "class", "classes")
    say(f"{made} described in {out}, {count(result.sentences, 'sentence')}; read it before you use it")
    if result.kept:
        say(f"{count(result.kept, 'class', 'classes')} described there before")
    return finished(result)
