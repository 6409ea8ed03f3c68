"""What a run prints while it trains, and at its end."""

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from omma.cli.shared import Output, out

if TYPE_CHECKING:  # they import torch, which takes a second
    from omma.pretraining import events
    from omma.pretraining.events import Event, Plan, Read, Result
    from omma.train.profile import Profile


@dataclass
class Listener:
    """Prints a run's events: a live bar on a terminal, a line every 15 seconds elsewhere."""

    console: Console = field(default_factory=Output)
    last: float = 0.0
    labels: str = "labels used for evaluation only"  # printed beside k-NN

    def __enter__(self) -> "Listener":
        columns = ("{task.description}", "loss {task.fields[loss]:.3f}", "{task.fields[rate]:,.0f} images/s",
                   "{task.fields[left]} left", "{task.fields[wait]}")  # fmt: skip
        self.bar = Progress(
            TextColumn(columns[0]), BarColumn(), *map(TextColumn, columns[1:]),
            console=self.console, transient=True, disable=not self.console.is_terminal,
        )  # fmt: skip
        self.bar.start()
        self.task = self.bar.add_task(
            "pretraining", total=None, loss=0.0, rate=0.0, left="", wait="", visible=False
        )
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def __call__(self, event: "Event") -> None:
        from omma.pretraining import events  # the run has imported it; other commands need not
        from omma.train.profile import Profile

        match event:
            case events.Plan():
                self.plan(event)
            case events.Progress():
                self.progress(event)
            case events.Read():
                self.read(event)
            case events.Note():
                self.console.print(event.text, markup=False)
            case Profile():
                for line in profile_lines(event):
                    self.console.print(line, markup=False)

    def plan(self, plan: "Plan") -> None:
        from omma.pretraining.requirements import needs_of

        say = self.console.print
        say(f"images     {plan.images}; {plan.used:,} to train on, {plan.skipped:,} skipped", markup=False)
        for note in plan.notes:
            say(f"           {note}", markup=False)
        for chosen, why in plan.choice.reasons:
            say(f"auto       {chosen}: {why}", markup=False)
        size, recipe = plan.choice.image_size, plan.choice.recipe
        chosen = "".join(f", {key} {value}" for key, value in plan.choice.model_options.items())
        say(f"model      {plan.choice.model} at {size} px{chosen}, {plan.parameters / 1e6:.2f}M parameters")
        say(f"method     {plan.choice.method}, batch {recipe.batch}, peak learning rate {recipe.lr:.2g}")
        for view in plan.views:
            say(f"views      {view}", markup=False)
        say(f"machine    {plan.device}, {plan.precision}; {plan.images_per_second:,.0f} images/s measured, "
            f"{plan.peak_memory / 2**30:.1f} GiB")  # fmt: skip
        learned = needs_of(plan.choice.method, recipe.config).labels
        self.labels = "on held-out images" if learned else self.labels
        resumed = f"resumed at step {plan.resumed_at:,}; " if plan.resumed_at else ""
        say(f"time       {resumed}{plan.steps:,} steps, about {_duration(plan.seconds)}")
        say(f"out        {plan.out}", markup=False)
        self.bar.update(self.task, visible=True)

    def progress(self, p: "events.Progress") -> None:
        wait = f"{p.waiting:.0%} waiting for data" if p.waiting > 0.05 else ""
        self.bar.update(
            self.task, completed=p.step, total=p.total, loss=p.loss, rate=p.images_per_second,
            left=_duration(p.seconds_left), wait=wait,
        )  # fmt: skip
        now = time.monotonic()
        if not self.console.is_terminal and now - self.last > 15:
            self.last = now
            self.console.print(
                f"step {p.step:,} of {p.total:,}, loss {p.loss:.3f}, {p.images_per_second:,.0f} images/s, "
                f"{_duration(p.seconds_left)} left {wait}"
            )

    def read(self, read: "Read") -> None:
        in_verdict = read.retained is not None and read.retained.knn is not None
        knn = "" if read.knn is None or in_verdict else f"; k-NN {read.knn:.3f} ({self.labels})"
        self.console.print(f"step {read.step:,}: {read.verdict}{knn}", markup=False)


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


def end(result: "Result") -> None:
    if result.stopped_by is not None:
        return
    out.print(f"\ndone: {result.steps:,} steps in {_duration(result.seconds)}")
    if result.verdict is not None:
        colour = {"good": "green", "warn": "yellow", "bad": "red"}[result.verdict.level]
        out.print(str(result.verdict), style=colour, markup=False)
    out.print(
        f"model   {result.out / 'model.safetensors'}\nreport  {result.out / 'report.html'}", markup=False
    )


def _duration(seconds: float) -> str:
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{s:02d}s" if minutes else f"{s}s"
