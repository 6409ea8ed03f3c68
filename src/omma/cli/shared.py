"""What the commands share: types of arguments, the console, and how text is laid out on it."""

import contextlib
import dataclasses
import io
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from omma.core.errors import printable

Auto = Literal["auto"]
LabelDepth = Annotated[int | Literal["path"] | None, tyro.conf.arg(metavar="INT|path")]
Model_ = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
Images_ = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="IMAGES")]
Labelled_ = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="LABELLED")]
Classes_ = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="LABELLED|NAMES.txt")]
With_ = Annotated[str, tyro.conf.arg(name="with", metavar="MODEL")]
Run_ = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
Name_ = Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
File_ = Annotated[Path | None, tyro.conf.arg(metavar="FILE")]
Labels_ = Annotated[str | None, tyro.conf.arg(metavar="K,K,...")]
Column_ = Annotated[str | None, tyro.conf.arg(metavar="COLUMN")]
Place_ = Annotated[str | None, tyro.conf.arg(metavar="PATH")]
Chosen_ = Annotated[str | None, tyro.conf.arg(metavar="IMAGES")]
As_ = Annotated[str | None, tyro.conf.arg(name="as", metavar="timm:NAME|torchvision:NAME")]
Size_ = Annotated[int | None, tyro.conf.arg(metavar="INT")]
Share_ = Annotated[float | None, tyro.conf.arg(metavar="FLOAT")]
Dotted = tyro.conf.Suppress[
    tyro.conf.Fixed[dict[str, dict[str, str]] | None]
]  # from --method.KEY VALUE and the like

INDENT = 11  # of what stands beside a label


@dataclass
class Mode:
    """What options of every command ask for (cli/everywhere.py), and what the command has to say."""

    quiet: bool = False
    stderr: bool = False  # text to standard error: standard output is for JSON
    plan_only: bool = False
    result: Any = None


MODE = Mode()


class Planned(Exception):
    """A command has checked its words and would begin to work, and only its plan is asked for."""


def finished(result: Any, status: int = 0) -> int:
    """Leave a command's result for --json; returns its exit status."""
    MODE.result = result
    return status


def as_json(value: Any) -> Any:
    """A result as JSON has it: by its own `to_json`, or field by field; arrays by their shapes."""
    if hasattr(value, "to_json"):
        value = value.to_json()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Mapping):
        return {str(key): as_json(each) for key, each in value.items()}
    if hasattr(value, "_asdict"):
        return as_json(value._asdict())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: as_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        return as_json(value.item())
    if hasattr(value, "shape"):  # arrays, tensors and tables
        return {"shape": list(value.shape)}
    if isinstance(value, Sequence | set | frozenset):
        return [as_json(each) for each in value]
    return str(value)


def discard_output() -> None:
    """Write to nowhere from now on, so that Python's flush at exit does not complain either."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Output(Console):
    """A console that prints names as they are: no markup in them, and no control characters."""

    def __init__(self, quiet: bool = False, **options: Any) -> None:
        own = {"quiet": quiet or MODE.quiet, "stderr": MODE.stderr}
        super().__init__(highlight=False, markup=False, emoji=False, **own, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)

    def on_broken_pipe(self) -> None:
        """Nobody reads on (`| head -3`): the command finishes its work in silence."""
        self.quiet = True
        discard_output()


out = Output()


def tolerant_streams() -> None:
    """Print characters that the terminal's encoding lacks as escapes, instead of failing on them."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(ValueError, OSError):  # a closed or replaced stream
                stream.reconfigure(errors="backslashreplace")


def is_live(console: Console) -> bool:
    """Can lines be drawn again in place?"""
    return console.is_terminal and not console.is_dumb_terminal


def wraps(console: Console) -> bool:
    """Has the reader a width to keep? Files and pipes have none, unless COLUMNS gives one."""
    return console.is_terminal or os.environ.get("COLUMNS", "").isdigit()


def say(text: str, label: str = "", *, style: str = "", indent: int | None = None, console: Console = out):
    """Print a text as it is, wrapped at words; with a label before it if one is given.

    indent: of what follows the label; of all lines if it is given without one.
    """
    indent = (INDENT if label else 0) if indent is None else indent
    text = printable(text)
    if not wraps(console):
        console.print(Text(label.ljust(indent) + text, style), soft_wrap=True)
        return
    lines = [
        line
        for paragraph in text.split("\n")
        for line in (Text(paragraph, style).wrap(console, max(20, console.width - indent)) or [Text()])
    ]
    for number, line in enumerate(lines):
        line.rstrip()
        head = "" if number else label
        console.print(Text(head.ljust(indent)) + line if head or line else "", soft_wrap=True)


def skipped_lines(bad: Sequence[tuple[str, str]], console: Console = out) -> None:
    """The first of the files that were left out, with the reasons."""
    for path, reason in bad[:5]:
        say(f"skipped {path}: {reason}", console=console)
    if len(bad) > 5:
        say(f"... and {len(bad) - 5:,} more", console=console)


def laid_out(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table whose first column is at left, numbers at right."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for i, name in enumerate(heads):
        table.add_column(Text(name), justify="right" if i else "left", no_wrap=i > 0)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def show(table: Table, console: Console = out) -> None:
    """Print a table, in its full width where the reader's is not known."""
    if not wraps(console):
        console = Output(file=console.file, width=10_000, quiet=console.quiet)
    console.print(table)


def fits(table: Table, console: Console = out) -> bool:
    """Is the console wide enough for the table without wrapping its cells?"""
    if not wraps(console):
        return True
    options = console.options.update(max_width=10_000)
    return console.measure(table, options=options).maximum <= console.width
