"""`omma explain`: a page that shows what a model looks at in images."""

from typing import Annotated, Any

import tyro

from omma.cli import early
from omma.cli.shared import (
    As_,
    Chosen_,
    LabelDepth,
    Model_,
    Size_,
    finished,
    laid_out,
    say,
    show,
    skipped_lines,
)
from omma.cli.stages import Stages
from omma.core import outputs
from omma.core.words import count

Several_ = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGES ...")]
Page_ = Annotated[str | None, tyro.conf.arg(metavar="PAGE.html")]
Labelled_ = Annotated[str | None, tyro.conf.arg(metavar="PHOTOS")]
Class_ = Annotated[str | None, tyro.conf.arg(name="class", metavar="NAME")]


def explain(
    model: Model_,
    images: Several_ = (),
    out: Page_ = None,
    what: tuple[str, ...] = (),
    class_name: Class_ = None,
    layers: tuple[int, ...] = (),
    heads: tuple[int, ...] = (),
    test: tuple[str, ...] = (),
    most: int = 16,
    image_size: Size_ = None,
    gallery: Chosen_ = None,
    features: tuple[int, ...] = (),
    shape_texture: Chosen_ = None,
    labelled: Labelled_ = None,
    architecture: As_ = None,
    allow_partial: bool = False,
    label_depth: LabelDepth = None,
    device: str = "auto",
    precision: str = "fp32",
    seed: int = 0,
) -> int:
    """Show what a model looks at in images, and what its answers rest on, as an HTML page.

    Args:
        model: Run folder, weights file, timm:NAME or hf:NAME.
        images: Images, in any form that pretrain accepts; several may be given.
        out: The page to write; with --shape-texture it may be left out.
        what: attention, rollout, occlusion, gradcam, gradients (integrated), pca (patch features as colours),
            parts; by default those that the model can have, but gradients (docs/explain.md). Also class-max
            (pictures that maximise a class), reconstruct, and with --gallery patches and neighbours.
        class_name: Class that is explained, of the model's classifier, or words for its text tower; by
            default each image's likeliest, or without classifier its likeness to itself.
        layers: Layers whose attention is drawn, from 0, or from -1 for the last.
        heads: Heads that are drawn; by default the most focused ones.
        test: sanity: do maps change when weights are made random? insertion: does the score follow the map?
        most: Images that are drawn, by chance where there are more.
        image_size: Pixels of the network's input, where it can read others than its own.
        gallery: Images for kinds that look for examples.
        features: Numbers of features, for class-max and patches; by default those that vary most.
        shape_texture: Instead of explaining images, say whether the model decides by shape or by texture:
            pictures in which both are of different classes, a table with path, shape, texture
            (docs/shape_texture.md).
        labelled: For --shape-texture, photos of the same classes, for a model without such a classifier.
        architecture: The network that a weights file or folder holds, where omma does not recognise it.
        allow_partial: Accept weights that lack many of the network's parameters.
        label_depth: Folder that names the class, as for evaluate.
        device: cpu, cuda or mps.
        precision: fp32 or bf16.
        seed: Seed of what is drawn by chance.
    """
    from omma.inspection import registry

    early.model(model)
    if shape_texture is not None:
        _without(images=images, what=what, **{"class": class_name}, test=test, gallery=gallery)
        return _shape_texture(
            model, shape_texture, labelled, out=out, label_depth=label_depth, device=device,
            precision=precision, architecture=architecture, allow_partial=allow_partial, seed=seed,
        )  # fmt: skip
    if not images or out is None:
        raise ValueError("give images to explain, and --out PAGE.html; or --shape-texture PICTURES")
    if labelled is not None:
        raise ValueError("--labelled is for --shape-texture: give that too, or leave it out")
    for each in images:
        early.images(each)
    outputs.check_file(out)
    registry.check(what)
    with Stages(f"reading {model} ...") as stages:
        from omma.core.device import keep_memory
        from omma.verbs.explain import explain as verb

        keep_memory()
        result: Any = verb(
            model, images, out, what=what, class_name=class_name, layers=layers, heads=heads, test=test,
            most=most, image_size=image_size, gallery=gallery, features=features, label_depth=label_depth,
            device=device, precision=precision, architecture=architecture, allow_partial=allow_partial,
            seed=seed, progress=stages,
        )  # fmt: skip
    for line in result.notes:
        say(line)
    for explanation in result.explanations:
        for judged in explanation.judged:
            say(f"{judged.of}: {judged.sentence}")
    kinds = ", ".join(e.title.lower() for e in result.explanations if e.shows)
    say(f"{count(len(result.paths), 'image')} in {out}: {kinds}")
    skipped_lines(result.bad)
    return finished(result)


def _without(**options: Any) -> None:
    """Raise ValueError for what --shape-texture would not heed."""
    if given := [name for name, value in options.items() if value]:
        raise ValueError(f"{given[0]} has no meaning with --shape-texture: leave one of them out")


def _shape_texture(
    model: str, pictures: str, labelled: str | None, *, out: str | None, **options: Any
) -> int:
    """`omma explain --shape-texture`."""
    for source in (pictures, *([] if labelled is None else [labelled])):
        early.images(source)
    with Stages(f"reading {model} ...") as stages:
        from omma.core.device import keep_memory
        from omma.verbs.shape_texture import shape_texture as verb

        keep_memory()
        result = verb(model, pictures, labelled, out=out, progress=stages, **options)
    for heads, rows in (result.table(), result.classes_table()):
        say("")
        show(laid_out(heads, rows))
    say("")
    say(result.verdict())
    for line in result.notes:
        say(line)
    skipped_lines(result.bad)
    if out is not None:
        say(f"written to {out}")
    return finished(result)
