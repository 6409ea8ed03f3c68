"""What the commands share: types of arguments, and the console."""

from typing import Annotated, Literal

import tyro
from rich.console import Console

Auto = Literal["auto"]
LabelDepth = int | Literal["path"] | None
Path_ = Annotated[str, tyro.conf.Positional]
Dotted = tyro.conf.Suppress[
    tyro.conf.Fixed[dict[str, dict[str, str]] | None]
]  # from --method.KEY VALUE and the like

out = Console(highlight=False, soft_wrap=True)
