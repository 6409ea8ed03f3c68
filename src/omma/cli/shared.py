"""What the commands share: types of arguments, and the console."""

import os
import sys
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.text import Text

from omma.core.errors import printable

Auto = Literal["auto"]
LabelDepth = int | Literal["path"] | None
Path_ = Annotated[str, tyro.conf.Positional]
Dotted = tyro.conf.Suppress[
    tyro.conf.Fixed[dict[str, dict[str, str]] | None]
]  # from --method.KEY VALUE and the like


def discard_output() -> None:
    """Write to nowhere from now on, so that Python's flush at exit does not complain either."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Output(Console):
    """A console that prints names as they are: no markup in them, and no control characters."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, soft_wrap=True, markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)

    def on_broken_pipe(self) -> None:
        """Nobody reads on (`| head -3`): the command finishes its work in silence."""
        self.quiet = True
        discard_output()


out = Output()
