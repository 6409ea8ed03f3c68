"""What a run prints while it trains, and at its end."""

import time
from functools import partial
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from omma.cli.shared import INDENT, is_live, out, say
from omma.cli.stages import Stages
from omma.core.duration import as_text
from omma.core.errors import printable
from omma.core.words import count

if TYPE_CHECKING:  # they import torch, which takes a second
    from omma.pretraining import events
    from omma.pretraining.events import Event, Plan, Read, Result
    from omma.train.profile import Profile


class Listener:
    """Prints a run's events: a live bar on a terminal, a line every 15 seconds elsewhere."""

    def __init__(self, first: str, console: Console = out) -> None:
        self.console = console
        self.stages = Stages(first, console, plans=True)
        self.last = 0.0
        self.labels = "labels used for evaluation only"  # printed beside k-NN
        columns = ("{task.description}", "loss {task.fields[loss]:.3f}", "{task.fields[rate]:,.0f} images/s",
                   "{task.fields[left]} left", "{task.fields[wait]}")  # fmt: skip
        self.bar = Progress(
            TextColumn(columns[0], markup=False), BarColumn(), *map(TextColumn, columns[1:]),
            console=console, transient=True, disable=not is_live(console),
        )  # fmt: skip
        self.task = self.bar.add_task("pretraining", total=None, loss=0.0, rate=0.0, left="", wait="")

    def __enter__(self) -> "Listener":
        self.stages.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.stages.stop()
        self.bar.stop()

    def __call__(self, event: "Event") -> None:
        from omma.pretraining import events  # the run has imported it; other commands need not
        from omma.train.profile import Profile

        match event:
            case events.Stage():
                self.stage(event)
            case events.Plan():
                self.plan(event)
            case events.Progress():
                self.progress(event)
            case events.Read():
                self.read(event)
            case events.Note():
                say(event.text, console=self.console)
            case Profile():
                for line in profile_lines(event):
                    say(line, console=self.console)

    def stage(self, stage: "events.Stage") -> None:
        if self.bar.live.is_started:  # a console has one live line
            self.bar.update(self.task, description=printable(stage.text))
        else:
            self.stages(stage.text, stage.done, stage.total)

    def plan(self, plan: "Plan") -> None:
        from omma.pretraining.requirements import needs_of

        self.stages.stop()
        line = partial(say, console=self.console, indent=INDENT)
        line(f"{plan.images}; {plan.used:,} to train on, {plan.skipped:,} skipped", "images")
        for note in plan.notes:
            line(note)
        for chosen, why in plan.choice.reasons:
            line(f"{chosen}: {why}", "auto")
        size, recipe = plan.choice.image_size, plan.choice.recipe
        chosen = "".join(f", {key} {value}" for key, value in plan.choice.model_options.items())
        line(f"{plan.choice.model} at {size} px{chosen}, {plan.parameters / 1e6:.2f}M parameters", "model")
        line(f"{plan.choice.method}, batch {recipe.batch}, peak learning rate {recipe.lr:.2g}", "method")
        for view in plan.views:
            line(view, "views")
        line(f"{plan.device}, {plan.precision}; {plan.images_per_second:,.0f} images/s measured, "
             f"{plan.peak_memory / 2**30:.1f} GiB", "machine")  # fmt: skip
        learned = needs_of(plan.choice.method, recipe.config).labels
        self.labels = "on held-out images" if learned else self.labels
        resumed = f"resumed at step {plan.resumed_at:,}; " if plan.resumed_at else ""
        line(f"{resumed}{count(plan.steps, 'step')}, about {as_text(plan.seconds)}", "time")
        line(str(plan.out), "out")
        self.bar.start()

    def progress(self, p: "events.Progress") -> None:
        wait = f"{p.waiting:.0%} waiting for data" if p.waiting > 0.05 else ""
        self.bar.update(
            self.task, completed=p.step, total=p.total, loss=p.loss, rate=p.images_per_second,
            left=as_text(p.seconds_left), wait=wait,
        )  # fmt: skip
        now = time.monotonic()
        if not is_live(self.console) and now - self.last > 15:
            self.last = now
            parts = (
                f"step {p.step:,} of {p.total:,}", f"loss {p.loss:.3f}",
                f"{p.images_per_second:,.0f} images/s", f"{as_text(p.seconds_left)} left", wait,
            )  # fmt: skip
            say(", ".join(filter(None, parts)), console=self.console)

    def read(self, read: "Read") -> None:
        in_verdict = read.retained is not None and read.retained.knn is not None
        knn = "" if read.knn is None or in_verdict else f"; k-NN {read.knn:.3f} ({self.labels})"
        say(f"step {read.step:,}: {read.verdict}{knn}", console=self.console)


def profile_lines(profile: "Profile") -> list[str]:
    """The table of a `train.profile.Profile`; parts that took no time are omitted."""
    shortest, longest = (1000 * end for end in (min(profile.steps), max(profile.steps)))
    spread = f"mean of {len(profile.steps)} steps, {shortest:,.1f} to {longest:,.1f} ms"
    lines = [f"{'':22}{'ms':>9}{'share':>8}   {spread}"]
    for part, seconds in [*profile.parts.items(), ("a step", profile.seconds)]:
        if seconds:
            lines.append(f"{part:22}{1000 * seconds:9,.1f}{seconds / profile.seconds:8.1%}")
    flops, rate, limit = (x / 1e9 for x in (profile.flops, profile.flops_per_second, profile.limit))
    lines += [
        f"{profile.images_per_second:,.0f} images/s without readings and saving; {flops:,.2f} GFLOP a step, "
        f"{rate:,.1f} GFLOP/s",
        f"{profile.share:.1%} of this machine's limit, {limit:,.0f} GFLOP/s (its best matrix product in "
        f"{profile.precision}, measured now)",
        f"{profile.peak_memory / 2**30:.2f} GiB at most so far, on {profile.device}",
    ]
    if profile.device.startswith("mps"):
        lines.append("the device was synchronised after each part: other steps are faster")
    return [f"{'' if i else 'profile':11}{line}" for i, line in enumerate(lines)]


def end(result: "Result", following: str = "") -> None:
    """What a finished run is worth and where it lies; following: what one does with it next."""
    if result.stopped_by is not None:
        return
    steps = f": {count(result.steps, 'step')}" if result.steps else ""  # a head has none
    say(f"\ndone{steps} in {as_text(result.seconds)}")
    if result.verdict is not None:
        colour = {"good": "green", "warn": "yellow", "bad": "red"}[result.verdict.level]
        say(str(result.verdict), style=colour)
    say(str(result.out / "model.safetensors"), "model", indent=8)
    if (page := result.out / "report.html").exists():
        say(str(page), "report", indent=8)
    if following:
        say(following, "next", indent=8)
