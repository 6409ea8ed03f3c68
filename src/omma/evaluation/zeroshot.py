"""Zero-shot classification by the names of the classes [Radford 2021, arXiv 2103.00020, section 3.1]."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from omma.core.errors import line
from omma.core.files import decode_text

TEMPLATE = "a photo of a {}."  # the paper's


def read_templates(file: str | Path) -> tuple[str, ...]:
    """One template a line, with {} in place of the class's name; empty lines are skipped.

    Raises ValueError for a file that cannot be read or has no template, and for a line without {}.
    """
    try:
        lines = decode_text(Path(file).read_bytes()).splitlines()
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: cannot be read as templates ({line(error)}); give a UTF-8 text") from None
    templates = [(number, each.strip()) for number, each in enumerate(lines, 1) if each.strip()]
    if not templates:
        raise ValueError(f"{file}: no template in it; write one a line, such as {TEMPLATE!r}")
    for number, each in templates:
        if each.count("{}") != 1:
            raise ValueError(f"{file}, line {number}: {each[:60]!r} needs one {{}} for the class's name")
    return tuple(each for _, each in templates)


def prompts(classes: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Every template filled with every class's name, class by class; underscores become spaces."""
    return [template.replace("{}", _words(name)) for name in classes for template in templates]


def _words(name: str) -> str:
    return name.replace("_", " ").strip()


def alike(classes: Sequence[str]) -> list[list[str]]:
    """Groups of classes whose prompts are equal."""
    groups: dict[str, list[str]] = {}
    for name in classes:
        groups.setdefault(_words(name), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def classifier(embedded: Float[np.ndarray, "ct o"], classes: int) -> Float[np.ndarray, "c o"]:
    """A unit vector a class: the normalised mean of its prompts' unit vectors."""
    means = embedded.reshape(classes, -1, embedded.shape[-1]).mean(1)
    return means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)


def predict(images: Float[np.ndarray, "n o"], classes: Float[np.ndarray, "c o"]) -> Int[np.ndarray, "n"]:
    """The nearest class by cosine, for each image's unit vector."""
    return (images @ classes.T).argmax(1)
