"""Zero-shot classification: classes by their names alone [Radford 2021, arXiv 2103.00020, section 3.1]."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from omma.core.errors import line

TEMPLATE = "a photo of a {}."  # the paper's


def read_templates(file: str | Path) -> tuple[str, ...]:
    """A template a line, each with {} where the class's name goes; empty lines are skipped.

    Raises ValueError in one line for a file that cannot be read, has none, or a line without {}.
    """
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: cannot be read as templates ({line(error)}); give a UTF-8 text") from None
    found = [(number, each.strip()) for number, each in enumerate(lines, 1) if each.strip()]
    if not found:
        raise ValueError(f"{file}: no template in it; write one a line, such as {TEMPLATE!r}")
    for number, each in found:
        if each.count("{}") != 1:
            raise ValueError(f"{file}, line {number}: {each[:60]!r} needs one {{}} for the class's name")
    return tuple(each for _, each in found)


def prompts(classes: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Every template with every class's name, class by class; underscores are spaces."""
    names = [name.replace("_", " ").strip() for name in classes]
    return [template.replace("{}", name) for name in names for template in templates]


def classifier(embedded: Float[np.ndarray, "ct o"], classes: int) -> Float[np.ndarray, "c o"]:
    """A unit vector a class: the mean of its prompts' unit vectors, brought to length 1 again."""
    means = embedded.reshape(classes, -1, embedded.shape[-1]).mean(1)
    return means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)


def predict(images: Float[np.ndarray, "n o"], classes: Float[np.ndarray, "c o"]) -> Int[np.ndarray, "n"]:
    """The class whose vector is nearest to each image's unit vector, by cosine."""
    return (images @ classes.T).argmax(1)
