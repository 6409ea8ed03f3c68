"""Captions composed of a table's columns by a template: "a {medium} from {culture}"."""

import re
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from omma.core.words import count
from omma.data.sources.columns import listed, shown
from omma.data.sources.indexed import IndexedImages
from omma.data.sources.selection import values_of

_PLACE = re.compile(r"\{([^{}]*)\}")
_WHOLE = re.compile(r"(-?[0-9]+)\.0")  # what whole numbers become in a column where some are missing
_ENDING = re.compile(r"[\s.,;:!?]*\Z")


class Phrase(NamedTuple):
    """A part of a caption that stays or goes as a whole."""

    before: str  # words before the value
    column: str
    after: str = ""  # words behind it


class Template(NamedTuple):
    """Phrases, and the punctuation that ends a caption."""

    phrases: tuple[Phrase, ...]
    ending: str

    def filled(self, values: list[str]) -> str:
        """The caption of an image; values: one a phrase, "" leaves it out. "" where all are."""
        there = [(phrase, value) for phrase, value in zip(self.phrases, values, strict=True) if value]
        if not there:
            return ""
        parts = [phrase.before + value + phrase.after for phrase, value in there]
        first, value = there[0]
        if first is not self.phrases[0]:
            parts[0] = first.before.lstrip(" ,;:.-") + value + first.after
        return " ".join("".join(parts).split()) + self.ending


def template(text: str, option: str = "--method.caption") -> Template:
    """The phrases of a text: each reaches from the end of a placeholder to the end of the next.

    Words behind the last placeholder belong to its phrase, the punctuation at the end to the caption. Raises
    ValueError for a text without a placeholder, and for a brace that is none.
    """
    pieces = _PLACE.split(text)  # text, column, text, column, ..., text
    columns = [column.strip() for column in pieces[1::2]]
    if not columns or not all(columns) or any(brace in piece for piece in pieces[::2] for brace in "{}"):
        raise ValueError(
            f'{option} {shown(text)!r}: name columns in braces, such as "a {{medium}} from {{culture}}"'
        )
    ending = _ENDING.search(pieces[-1])
    assert ending is not None
    behind = pieces[-1][: ending.start()]
    phrases = [Phrase(before, column) for before, column in zip(pieces[:-1:2], columns, strict=True)]
    phrases[-1] = phrases[-1]._replace(after=behind)
    return Template(tuple(phrases), ending[0].strip())


def compose(images: IndexedImages, text: str, option: str = "--method.caption") -> IndexedImages:
    """The collection with a caption of each image, in place of any others; an empty one is left out.

    A phrase whose value is missing is left out. A note says how captions look and how many lack what. Raises
    ValueError for a column that the table has not.
    """
    plan = template(text, option)
    values = [_values(images, phrase.column, option) for phrase in plan.phrases]
    captions = [plan.filled(list(row)) for row in zip(*values, strict=True)]
    lacking = {phrase.column: column.count("") for phrase, column in zip(plan.phrases, values, strict=True)}
    first = next(filter(None, captions), None)
    note = f"captions are composed by {shown(text)!r}"
    note += "" if first is None else f" (the first: {shown(first)!r})"
    if few := [f"{n:,} {name}" for name, n in lacking.items() if n]:
        note += f"; of {count(len(images), 'image')} these lack a value: {listed(few)}"
    made = images.subset(np.arange(len(images)))
    made.text = pa.array(
        [[caption] if caption else [] for caption in captions], pa.large_list(pa.large_string())
    )
    made.notes = (*images.notes, note)
    return made


def has_columns(images: IndexedImages, columns: list[str]) -> bool:
    """Whether a template may name these columns of the collection."""
    own = [] if images.columns is None else images.columns.column_names
    return {*columns} <= {*own, "path", *["class"] * (images.labels is not None)}


def _values(images: IndexedImages, column: str, option: str) -> list[str]:
    values = values_of(images, column, option)
    whole = [_WHOLE.fullmatch(value) for value in values]
    if all(match or not value for match, value in zip(whole, values, strict=True)):
        return [match[1] if match else "" for match in whole]
    return values
