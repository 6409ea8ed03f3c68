"""The command line: parse, call a verb, print."""

import functools
import re
import sys
import time
import traceback
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

Auto = Literal["auto"]
Path_ = Annotated[str, tyro.conf.Positional]

out = Console(highlight=False, soft_wrap=True)


# ---------------------------------------------------------------- commands
def pretrain(
    images: Path_,
    method: str = "auto",
    model: str = "auto",
    out: str | None = None,
    budget: str | None = None,
    epochs: float | None = None,
    steps: int | None = None,
    image_size: int | Auto = "auto",
    batch_size: int | Auto = "auto",
    accumulate: int = 1,
    lr: float | Auto = "auto",
    recipe: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    seed: int = 0,
    workers: int | Auto = "auto",
    checkpoint_every: float = 300.0,
    options: tyro.conf.Suppress[tyro.conf.Fixed[dict[str, str] | None]] = None,
) -> int:
    """Pretrain an encoder on images without labels.

    The same command again resumes a run that was stopped. A method's own options are set with
    --method.KEY VALUE; `omma methods NAME` lists them.

    Args:
        images: Folder, glob, .zip, .tar, manifest (.csv .parquet .jsonl), .npz, .npy or IDX .gz.
        method: Pretraining method; `omma methods` lists them.
        model: Backbone; `omma models` lists them.
        out: Run folder; by default runs/ and a name made of images, method and model.
        budget: Time to end at, such as 90s, 10m or 2h; 30m where no end is given.
        epochs: Passes over the images.
        steps: Optimizer steps.
        image_size: Pixels along a side that the network sees.
        batch_size: Images a step.
        accumulate: Parts that a step is computed in, to save memory.
        lr: Peak learning rate.
        recipe: small or paper.
        device: cpu, cuda or mps.
        precision: fp32 or bf16.
        seed: Of everything random.
        workers: Processes that decode images.
        checkpoint_every: Seconds between checkpoints.
    """
    from omma.device import keep_memory
    from omma.verbs.pretrain import pretrain as verb

    keep_memory()

    given = {k: None if v == "auto" else v for k, v in locals().items() if k in
             ("image_size", "batch_size", "lr", "workers")}  # fmt: skip
    listener = _Listener()
    with listener:
        result = verb(
            images, method=method, model=model, out=out, budget=budget, epochs=epochs, steps=steps,
            accumulate=accumulate, recipe=recipe, device=device, precision=precision, seed=seed,
            checkpoint_every=checkpoint_every, options=options, listen=listener, **given,
        )  # fmt: skip
    _end(result)
    return 0 if result.stopped_by is None else 128 + result.stopped_by


def evaluate(
    model: Path_,
    labelled: Path_,
    protocol: tuple[str, ...] = ("knn", "linear"),
    json: Path | None = None,
    floors: bool = True,
    device: str = "auto",
    precision: str = "auto",
    seed: int = 0,
) -> int:
    """Judge a model on labelled images, beside raw pixels and the same network untrained.

    Args:
        model: Run folder or weights file.
        labelled: Images with class folders or a label column.
        protocol: knn, linear, ridge.
        json: File to write the results to.
        floors: Measure raw pixels and the untrained network too.
        device: cpu, cuda or mps.
        precision: fp32 or bf16.
        seed: Of splits and untrained weights.
    """
    from omma.device import keep_memory
    from omma.verbs.evaluate import evaluate as verb

    keep_memory()

    with out.status("reading images and computing features"):
        result = verb(
            model, labelled, protocols=protocol, json=json, floors=floors, device=device,
            precision=precision, seed=seed,
        )  # fmt: skip
    _print_evaluation(result)
    if json is not None:
        out.print(f"written to {json}")
    if (Path(model) / "config.json").exists():
        return report(model, labelled, seed)
    return 0


def embed(model: Path_, images: Path_, out: str, device: str = "auto", precision: str = "auto") -> int:
    """Write a table of feature vectors: path, label where there is one, vector.

    Args:
        model: Run folder or weights file.
        images: As for pretrain.
        out: The .parquet file to write.
        device: cpu, cuda or mps.
        precision: fp32 or bf16.
    """
    from omma.device import keep_memory
    from omma.verbs.embed import embed as verb

    keep_memory()

    result = verb(model, images, out, device=device, precision=precision)
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{result.rows:,} vectors of {result.dim} dimensions in {out}")
    for path, reason in result.bad[:5]:
        console.print(f"skipped {path}: {reason}", markup=False)
    if len(result.bad) > 5:
        console.print(f"... and {len(result.bad) - 5:,} more")
    return 0


def report(run: Path_, images: Path_, seed: int = 0) -> int:
    """Draw a run's report again, with pictures of other images.

    Args:
        run: Run folder.
        images: As for pretrain.
        seed: Of the choice of pictures.
    """
    from omma.verbs.report import report as verb

    out.print(f"report  {verb(run, images, seed=seed)}", markup=False)
    return 0


def demo(budget: str = "150s", out: str = "runs/demo", seed: int = 0) -> int:
    """The main job on embedded data: pretrain, evaluate, report, in under four minutes.

    Real handwritten digits at random places on textures of photographs, 32 px: what they show can only be
    told by their shape.

    Args:
        budget: Time for pretraining.
        out: Run folder.
        seed: Of data and training.
    """
    from omma.verbs import demo as verb

    data = str(verb.images(out, seed))
    flags = " ".join(f"--method.{key} {value}" for key, value in verb.OPTIONS.items())
    Console().print(
        f"$ omma pretrain {data} --out {out} --budget {budget} --method {verb.METHOD} {flags}", style="bold"
    )
    code = pretrain(data, method=verb.METHOD, out=out, budget=budget, seed=seed, options=verb.OPTIONS)
    if code:
        return code
    Console().print(f"\n$ omma evaluate {out} {data}", style="bold")
    return evaluate(out, data, seed=seed)


def methods(name: Annotated[str | None, tyro.conf.Positional] = None) -> int:
    """List the pretraining methods, or explain one.

    Args:
        name: The method to explain.
    """
    import dataclasses
    import inspect

    from omma import methods as known

    if name is None:
        table = Table(box=None, show_header=False)
        for each in known.names():
            table.add_row(each, (inspect.getdoc(known.get(each)) or "").splitlines()[0])
        out.print(table)
        return 0
    file = known.get(name)
    out.print(inspect.getdoc(file), markup=False)
    out.print("\noptions (--method.KEY VALUE): the paper's, and what the small-data recipe sets")
    table = Table(box=None)
    for column in ("key", "paper", "small"):
        table.add_column(column)
    paper, small = file.paper(224, "vit-s/16"), file.small(32, "vit-n/4")
    for f in dataclasses.fields(file.Config):
        a, b = getattr(paper.config, f.name), getattr(small.config, f.name)
        table.add_row(f.name, str(a), "" if a == b else str(b))
    for f in ("batch", "lr", "weight_decay", "warmup"):
        a, b = getattr(paper, f), getattr(small, f)
        table.add_row(f"({f})", f"{a:g}", "" if a == b else f"{b:g}")
    out.print(table)
    return 0


def models() -> int:
    """List the backbones, with their parameters at 32 px (patch up to 8) or 224 px."""
    from omma import backbones

    table = Table(box=None)
    table.add_column("name")
    table.add_column("at", justify="right")
    table.add_column("parameters", justify="right")
    table.add_column("width", justify="right")
    for name in backbones.names():
        size, count, width = backbones.measure(name)
        table.add_row(name, f"{size} px", f"{count / 1e6:.2f}M", str(width))
    out.print(table)
    return 0


def doctor() -> int:
    """Say what hardware and precision will be used, and why."""
    from omma.verbs.doctor import doctor as verb

    table = Table(box=None, show_header=False)
    for name, value in verb():
        table.add_row(name, value)
    out.print(table)
    return 0


# ---------------------------------------------------------------- printing
@dataclass
class _Listener:
    """Prints what happens in a run: a live bar on a terminal, a line now and then elsewhere."""

    console: Console = field(default_factory=lambda: Console(highlight=False, soft_wrap=True))
    last: float = 0.0

    def __enter__(self) -> "_Listener":
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

    def __call__(self, event: Any) -> None:
        {"Plan": self.plan, "Progress": self.progress, "Read": self.read, "Note": self.note}[
            type(event).__name__
        ](event)

    def plan(self, plan: Any) -> None:
        say = self.console.print
        say(f"images     {plan.images}; {plan.used:,} to train on, {plan.skipped:,} skipped", markup=False)
        for note in plan.notes:
            say(f"           {note}", markup=False)
        for chosen, why in plan.choice.reasons:
            say(f"auto       {chosen}: {why}", markup=False)
        size, recipe = plan.choice.image_size, plan.choice.recipe
        say(f"model      {plan.choice.model} at {size} px, {plan.parameters / 1e6:.2f}M parameters")
        say(f"method     {plan.choice.method}, batch {recipe.batch}, peak learning rate {recipe.lr:.2g}")
        for view in plan.views:
            say(f"views      {view}", markup=False)
        say(f"machine    {plan.device}, {plan.precision}; {plan.images_per_second:,.0f} images/s measured, "
            f"{plan.peak_memory / 2**30:.1f} GiB")  # fmt: skip
        resumed = f"resumed at step {plan.resumed_at:,}; " if plan.resumed_at else ""
        say(f"time       {resumed}{plan.steps:,} steps, about {_duration(plan.seconds)}")
        say(f"out        {plan.out}", markup=False)
        self.bar.update(self.task, visible=True)

    def progress(self, p: Any) -> None:
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

    def read(self, read: Any) -> None:
        knn = "" if read.knn is None else f"; k-NN {read.knn:.3f} (labels used for reading only)"
        self.console.print(f"step {read.step:,}: {read.verdict}{knn}", markup=False)

    def note(self, note: Any) -> None:
        self.console.print(note.text, markup=False)


def _duration(seconds: float) -> str:
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{s:02d}s" if minutes else f"{s}s"


def _end(result: Any) -> None:
    if result.stopped_by is not None:
        return
    out.print(f"\ndone: {result.steps:,} steps in {_duration(result.seconds)}")
    if result.verdict is not None:
        colour = {"good": "green", "warn": "yellow", "bad": "red"}[result.verdict.level]
        out.print(str(result.verdict), style=colour, markup=False)
    out.print(
        f"model   {result.out / 'model.safetensors'}\nreport  {result.out / 'report.html'}", markup=False
    )


def _print_evaluation(evaluation: Any) -> None:
    heads, rows = evaluation.table()
    table = Table()
    for i, name in enumerate(heads):
        table.add_column(name, justify="right" if i else "left")
    for row in rows:
        table.add_row(*row)
    out.print(table)
    for line in (evaluation.protocol(), evaluation.verdict(), *evaluation.notes):
        out.print(line, markup=False)


# ---------------------------------------------------------------- entry
COMMANDS = {
    "pretrain": pretrain,
    "evaluate": evaluate,
    "embed": embed,
    "report": report,
    "methods": methods,
    "models": models,
    "doctor": doctor,
    "demo": demo,
}


def _method_options(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """Take `--method.KEY VALUE` and `--method.KEY=VALUE` out of the arguments."""
    rest, options = [], {}
    words = iter(arguments)
    for word in words:
        match = re.fullmatch(r"--method\.([\w-]+)(?:=(.*))?", word, re.DOTALL)
        if match is None:
            rest.append(word)
            continue
        value = match[2] if match[2] is not None else next(words, None)
        if value is None:
            raise ValueError(f"{word}: a value must follow")
        options[match[1].replace("-", "_")] = value
    return rest, options


def main(arguments: list[str] | None = None) -> None:
    """Run one command; errors that the user can mend are one line and exit status 2."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [w for w in words if w != "--debug"]
    # Pillow warns of images past 89 million pixels; those that omma leaves out, twice that, are listed
    warnings.filterwarnings("ignore", message="Image size .* could be decompression bomb")
    try:
        words, options = _method_options(words)
        if options and words[:1] != ["pretrain"]:
            raise ValueError("--method.KEY is an option of `omma pretrain`")
        commands = {**COMMANDS, "pretrain": functools.partial(pretrain, options=options)}
        code = tyro.extras.subcommand_cli_from_dict(commands, args=words, prog="omma", description=__doc__)
    except (ValueError, OSError) as error:
        if debug:
            traceback.print_exc()
        print(f"omma: {' '.join(str(error).split())}", file=sys.stderr)
        code = 2
    sys.exit(code)


if __name__ == "__main__":
    main()
