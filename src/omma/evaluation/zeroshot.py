"""Zero-shot classification by the names of the classes [Radford 2021, arXiv 2103.00020, section 3.1].

Or by sentences that describe them: CuPL [Pratt 2022, arXiv 2209.03320].
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from omma.backbones.layers import prompts as learned_prompts
from omma.backbones.layers.prompts import Learned
from omma.backbones.layers.text import Paired
from omma.core.errors import line
from omma.core.files import decode_text
from omma.core.words import class_words, count

TEMPLATE = "a photo of a {}."  # the paper's
Sentences = Mapping[str, Sequence[str]]  # as `by_words` has them


def read_templates(file: str | Path) -> tuple[str, ...]:
    """One template a line, with {} in place of the class's name; empty lines are skipped.

    Raises ValueError for a file that cannot be read or has no template, and for a line without {}.
    """
    lines = _read(file, "templates", "a UTF-8 text").splitlines()
    templates = [(number, each.strip()) for number, each in enumerate(lines, 1) if each.strip()]
    if not templates:
        raise ValueError(f"{file}: no template in it; write one a line, such as {TEMPLATE!r}")
    for number, each in templates:
        if each.count("{}") != 1:
            raise ValueError(f"{file}, line {number}: {each[:60]!r} needs one {{}} for the class's name")
    return tuple(each for _, each in templates)


def read_descriptions(file: str | Path) -> dict[str, list[str]]:
    """Sentences of each class from JSON, {"class": ["sentence", ...]}, CuPL's published form.

    Raises ValueError for a file that cannot be read, and for a class without sentences.
    """
    form = 'JSON, {"class": ["sentence", ...], ...}'
    try:
        content: Any = json.loads(_read(file, "descriptions", form))
    except ValueError as error:
        if str(error).startswith(str(file)):
            raise
        raise ValueError(f"{file} is not JSON ({line(error)}); write {form}") from None
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{file}: no classes in it; write {form}")
    for name, sentences in content.items():
        listed = isinstance(sentences, list) and all(isinstance(s, str) and s.strip() for s in sentences)
        if not listed or not sentences:
            shown = line(ValueError(repr(sentences)))[:60]
            raise ValueError(f"{file}: {name!r} has {shown}: a list of one or more sentences is expected")
    return content


def key(name: str) -> str:
    """By which the name of a class is looked up: in lower case, with spaces for underscores."""
    return class_words(name).casefold()


def by_words(descriptions: Mapping[str, Sequence[str]]) -> Sentences:
    """The same by `key`; sentences of names with the same one are put together."""
    found: dict[str, list[str]] = {}
    for name, sentences in descriptions.items():
        found.setdefault(key(name), []).extend(sentences)
    return found


def _read(file: str | Path, what: str, form: str) -> str:
    try:
        return decode_text(Path(file).read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: cannot be read as {what} ({line(error)}); give {form}") from None


def prompts(classes: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Every template filled with every class's name, class by class; underscores become spaces."""
    return [template.replace("{}", class_words(name)) for name in classes for template in templates]


def alike(classes: Sequence[str]) -> list[list[str]]:
    """Groups of classes whose prompts are equal."""
    groups: dict[str, list[str]] = {}
    for name in classes:
        groups.setdefault(class_words(name), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def classifier(embedded: Float[np.ndarray, "t o"], counts: Sequence[int]) -> Float[np.ndarray, "c o"]:
    """A unit vector a class: the normalised mean of its texts' unit vectors.

    embedded: the texts' unit vectors, class by class; counts: texts of each class, at least one.
    """
    each = np.split(embedded, np.cumsum(counts)[:-1])
    means = np.stack([vectors.mean(0) for vectors in each])
    return means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)


def predict(images: Float[np.ndarray, "n o"], classes: Float[np.ndarray, "c o"]) -> Int[np.ndarray, "n"]:
    """The nearest class by cosine, for each image's unit vector."""
    return (images @ classes.T).argmax(1)


# ---------------------------------------------------------------- a model's reader of texts
@dataclass(frozen=True)
class TextReader:
    """A model's text tower, and what it reads of a class.

    templates and descriptions together are CuPL's "both": the mean over all of a class's texts. Without
    either, the name is read in the context that the model has learned (CoOp), else in CLIP's template.
    """

    paired: Paired
    templates: Sequence[str] = ()
    descriptions: Sentences | None = None
    learned: Learned | None = None

    @property
    def context(self) -> Learned | None:
        """The learned context, if it is used."""
        return None if self.templates or self.descriptions is not None else self.learned

    def texts(self, name: str) -> list[str]:
        """The texts that stand for a class; those of CLIP's template for one without descriptions."""
        described = (self.descriptions or {}).get(key(name), ())
        templates = self.templates or (() if described else (TEMPLATE,))
        return [*prompts([name], templates), *described]

    def undescribed(self, classes: Sequence[str]) -> list[str]:
        """Classes that the descriptions lack."""
        known = self.descriptions
        return [] if known is None else [c for c in classes if key(c) not in known]

    def vectors(self, classes: Sequence[str], device: torch.device | str = "cpu") -> Float[np.ndarray, "c o"]:
        """A unit vector for each class.

        Raises ValueError if the descriptions know none of the classes, or a learned context lacks one.
        """
        if self.context is not None:
            return learned_prompts.class_vectors(self.paired, self.context, classes, device).numpy()
        if classes and len(self.undescribed(classes)) == len(classes):
            known = ", ".join(list(self.descriptions or ())[:3])
            raise ValueError(
                f"the descriptions have none of the classes {', '.join(classes[:3])}, ...: "
                f"they are of {known}, ...; give a file with these classes' names"
            )
        texts = [self.texts(name) for name in classes]
        embedded = self.paired.texts([each for some in texts for each in some], device)
        return classifier(embedded, [len(some) for some in texts])

    def settings(self, classes: Sequence[str]) -> dict[str, Any]:
        """For the record of an evaluation."""
        if self.context is not None:
            return {"learned_context": self.context.context.shape[-2], "position": self.context.position}
        texts = {"texts": sum(len(self.texts(name)) for name in classes)} if self.descriptions else {}
        templates = self.templates or (TEMPLATE,)
        return texts | {"templates": len(templates), "template": templates[0]}

    def notes(self, classes: Sequence[str]) -> list[str]:
        """What is read of the classes, in words; and what of it is missing or cut."""
        names = f"zero-shot: {count(len(classes), 'class', 'classes')}"
        if self.context is not None:
            own = "of its own" if self.context.classes else "for all"
            return [
                f"{names} by their names, each in a learned context of {self.context.context.shape[-2]} "
                f"vectors {own} (CoOp); --prompts FILE gives other prompts"
            ]
        templates = self.templates or (TEMPLATE,)
        more = f" and {len(templates) - 1} more templates" if len(templates) > 1 else ""
        by_name = f"by their names, as {templates[0]!r}{more}"
        tokenizer = self.paired.tokenizer
        assert tokenizer is not None
        unrepaired = tokenizer.unrepaired([each for name in classes for each in self.texts(name)])
        if self.descriptions is None:
            return [f"{names} {by_name}", *unrepaired]
        lacking = self.undescribed(classes)
        described = [name for name in classes if name not in set(lacking)]
        texts = [each for name in described for each in self.texts(name)]
        both = f", and {by_name}" if self.templates else ""
        notes = [f"{names} by {count(len(texts), 'text')}: their descriptions{both}"]
        if lacking:
            shown = ", ".join(lacking[:5]) + ", ..." * (len(lacking) > 5)
            notes.append(
                f"{count(len(lacking), 'class', 'classes')} without a description, {by_name}: {shown}"
            )
        if cut := sum(not tokenizer.fits(each) for each in texts):
            of = count(len(texts), "text")
            notes.append(f"{cut:,} of {of} are longer than {tokenizer.context} tokens and are cut")
        return [*notes, *unrepaired]
