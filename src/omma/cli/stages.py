"""What a command is doing before it has results: a live line on a terminal, elsewhere a line at times."""

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from omma.cli.shared import MODE, Planned, is_live, out, say
from omma.core.errors import printable

QUICK = 2.0  # seconds: no line for a stage that begins sooner after the last line
PAUSE = 5.0  # seconds between lines about the same stage; they grow rarer in a long command


class Stages:
    """Print the stage, and how many images of how many are done; the first line is printed at once."""

    def __init__(self, first: str, console: Console = out, plans: bool = False) -> None:
        """plans: with --plan-only, what follows tells the plan itself. Raises `Planned` otherwise."""
        if MODE.plan_only and not plans:
            raise Planned
        self.console = console
        self.started = self.last = time.monotonic()
        self.stage = ""
        self.bar = Progress(
            TextColumn("{task.description}", markup=False), BarColumn(),
            TextColumn("{task.fields[count]}", markup=False), TimeRemainingColumn(elapsed_when_finished=True),
            console=console, transient=True, disable=not is_live(console),
        )  # fmt: skip
        self.task = self.bar.add_task("", total=None, count="")
        say(first, console=console)

    def __enter__(self) -> "Stages":
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Take the live line away, for others that will be drawn."""
        self.bar.stop()

    def __call__(self, stage: str, done: int = 0, total: int = 0) -> None:
        count = f"{done:,} of {total:,}" if total else ""
        changed = stage != self.stage
        if changed:
            self.bar.reset(self.task)
            self.stage = stage
        self.bar.update(
            self.task, description=printable(stage), completed=done, total=total or None, count=count
        )
        now = time.monotonic()
        pause = QUICK if changed else max(PAUSE, (now - self.started) / 20)
        if not is_live(self.console) and now - self.last >= pause and (changed or done < total):
            self.last = now
            say(f"{stage}: {count}" if count else stage, console=self.console)
