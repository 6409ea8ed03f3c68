"""How results look in a notebook."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from html import escape
from pathlib import Path
from typing import Any

from omma.core.errors import printable

MOST = 12  # entries of a list that are shown


LONGEST = 240  # characters of a representation: two or three lines of a terminal


class Displayed:
    """A dataclass of results: a line where it is printed, in a notebook a table of its fields.

    Fields without `repr` are left out; lists are cut after MOST entries, in the line they are counted.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__repr__" not in cls.__dict__:  # before the dataclass writes its own
            cls.__repr__ = Displayed.__repr__

    def __repr__(self) -> str:
        said = [f"{name.replace('_', ' ')} {text}" for name, value in self.displayed().items()
                if (text := _brief(value))]  # fmt: skip
        return brief(type(self).__name__, ", ".join(said))

    def _repr_html_(self) -> str:
        return facts(type(self).__name__, self.displayed())

    def displayed(self) -> Mapping[str, Any]:
        """Names and values to show."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.repr}  # type: ignore[arg-type]


def brief(what: str, said: str) -> str:
    """A representation of a result: what it is and what it says, cut after LONGEST characters."""
    text = printable(" ".join(said.split()))
    room = LONGEST - len(what) - 4
    return f"<{what}: {text if len(text) <= room else text[: room - 3].rstrip() + '...'}>"


def _brief(value: Any) -> str:
    """A value in a few words; "" for what says nothing."""
    if value is None or (isinstance(value, Sequence | Mapping) and not value):
        return ""
    if isinstance(value, Mapping):
        return " ".join(f"{name} {each}" for name, each in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"({len(value):,})"
    if getattr(value, "ndim", 0):
        return f"{list(value.shape)}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def facts(title: str, values: Mapping[str, Any]) -> str:
    """A table of two columns; what is empty is left out."""
    rows = [(name.replace("_", " "), _shown(value)) for name, value in values.items()]
    body = "".join(f"<tr><th style='text-align:left'>{_safe(n)}</th><td>{v}</td></tr>" for n, v in rows if v)
    return f"<table><caption>{_safe(title)}</caption><tbody>{body}</tbody></table>"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "", below: str = "") -> str:
    """A table of texts, with a sentence above and one below."""
    head = "".join(f"<th>{_safe(each)}</th>" for each in heads)
    body = "".join("<tr>" + "".join(f"<td>{_safe(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    title = f"<caption>{_safe(caption)}</caption>" * bool(caption)
    after = f"<p>{_safe(below)}</p>" * bool(below)
    return f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{after}"


def _shown(value: Any) -> str:
    """A value as HTML; "" for what says nothing."""
    if value is None or (isinstance(value, Sequence | Mapping) and not value):
        return ""
    if getattr(value, "ndim", 0):  # an array or a tensor
        return _safe(f"{type(value).__name__} {list(getattr(value, 'shape', ()))}")
    if isinstance(value, str | Path):
        return _safe(str(value))
    if isinstance(value, Mapping):
        value = [f"{name}: {each}" for name, each in value.items()]
    if isinstance(value, Sequence):
        more = [f"... and {len(value) - MOST:,} more"] * (len(value) > MOST)
        return "<br>".join(_safe(str(each)) for each in [*value[:MOST], *more])
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _safe(str(value))
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


def _safe(text: str) -> str:
    return escape(printable(text))
