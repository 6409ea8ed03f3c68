"""Commands that inform: `omma methods`, `omma models` and `omma doctor`."""

import dataclasses
import importlib.util
import inspect
import re
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from omma.cli import catalogue
from omma.cli.shared import Name_, Size_, finished, say, show
from omma.cli.stages import Stages
from omma.core.errors import install_command
from omma.core.words import count

if TYPE_CHECKING:  # it imports torch, which takes a second
    from omma.core.protocols import Needs, Recipe


def methods(name: Name_ = None) -> int:
    """List the pretraining methods, or explain one.

    Args:
        name: The method to explain.
    """
    from omma import methods as package

    if name is None:
        table = Table(box=None, show_header=False)
        summaries = {method: package.summary(method) for method in package.names()}
        for method, summary in summaries.items():
            table.add_row(method, Text(summary))
        show(table)
        say("\n`omma methods NAME` explains one.")
        return finished(summaries)
    file = package.get(name)
    from omma.pretraining.requirements import needs_of

    say(file.doc)
    if needs := _needs_in_words(needs_of(name, file.paper(224, "vit-s/16").config)):
        say(f"\nNeeds in addition to images: {'; '.join(needs)}.")
    say("\noptions (--method.KEY VALUE): the paper's values, and what the small-data recipe changes")
    table = Table(box=None)
    for column in ("key", "paper", "small"):
        table.add_column(column)
    paper, small = file.paper(224, "vit-s/16"), file.small(32, "vit-n/4")
    for f in dataclasses.fields(file.Config):
        a, b = getattr(paper.config, f.name), getattr(small.config, f.name)
        table.add_row(f.name, Text(str(a)), Text("" if a == b else str(b)))
    show(table)
    say("\nrules of the two recipes (--recipe)")
    table = Table(box=None)
    for column in ("rule", "paper", "small"):
        table.add_column(column)
    for (rule, a), (_, b) in zip(_rules(paper), _rules(small), strict=True):
        table.add_row(rule, Text(a), Text("" if a == b else b))
    show(table)
    configs = {"paper": paper.config, "small": small.config}
    rules = {"paper": dict(_rules(paper)), "small": dict(_rules(small))}
    return finished({"method": name, "options": configs, "rules": rules})


def _rules(recipe: "Recipe") -> list[tuple[str, str]]:
    """What a recipe trains by, in words."""
    r, schedule = recipe, recipe.schedule
    follows = {"linear": "as the batch", "sqrt": "as its root", "none": "alike for all"}[r.rate_by_batch]
    warmup = f"{r.warmup:.3g} of the run"
    if r.warmup_epochs is not None:
        warmup = f"{r.warmup_epochs:g} epochs" + (f" of {r.epoch_steps:,} steps" if r.epoch_steps else "")
    if r.warmup_length is not None:
        warmup = f"{r.warmup_length:,} steps"
    start = f", from {schedule.start:g}" if schedule.start else ""
    down = f"cosine to {r.lr_end:.2g}"
    if schedule.drops:
        down = f"a tenth at {', '.join(f'{drop:.3g}' for drop in schedule.drops)} of the run"
    decay = f"{r.weight_decay:g}" + (f" to {r.weight_decay_end:g}" if r.weight_decay_end is not None else "")
    spared = {"token": "tokens", "position": "positions", "table": "tables", "vector": "vectors"}
    also = [spared.get(kind, kind) for kind in r.decayed]
    each = {"all": "all gradients", "part": "each part", "tensor": "each tensor"}[r.clip_by]
    adamw = f"AdamW, betas {r.betas[0]:g}, {r.betas[1]:g}"
    optimizer = {
        "adamw": adamw,
        "lars": f"LARS, momentum {r.betas[0]:g}",
        "muon": f"Muon for matrices, momentum {r.momentum:g}, {r.matrix_lr:g} x the rate; else {adamw}",
    }[r.optimizer]
    return [
        ("batch", f"{r.batch:,}"),
        ("peak learning rate", f"{r.lr:.3g}; another batch: {follows}"),
        ("warm-up", warmup + start),
        ("then", down + (", each epoch" if schedule.by == "epoch" else "")),
        ("weight decay", f"{decay}, of matrices" + "".join(f", {kind}" for kind in also)),
        ("gradient norm", "any" if r.clip is None else f"at most {r.clip:g}, {each}"),
        ("optimizer", optimizer),
        ("stochastic depth", f"{r.drop_path:g}"),
        (
            "views",
            ", ".join(f"x {scale:g} until {until:.0%}" for until, scale in r.resolution) or "as planned",
        ),
        ("network", ", ".join(f"{key} {value}" for key, value in r.encoder.items()) or "as it is"),
    ]


def _needs_in_words(needs: "Needs") -> list[str]:
    """What a method needs in addition to images, in words."""
    phrases = {
        "labels": needs.labels,
        "captions": needs.text,
        f"{needs.kind}, as --method.{(needs.model or '').replace('_', '-')} MODEL": needs.model,
        "a backbone that can process a subset of the tokens": needs.drops_tokens,
        "a backbone that embeds each patch independently": needs.plain,
        f"a batch of at least {needs.batch}, for {needs.why_batch}": needs.batch > 1,
    }
    return [phrase for phrase, needed in phrases.items() if needed]


def models(name: Name_ = None, image_size: Size_ = None, channels: int = 3) -> int:
    """List the backbones with their cost, or explain one.

    Args:
        name: The backbone to explain.
        image_size: Image size in pixels; by default the usual one for the backbone.
        channels: Number of image channels.
    """
    for flag, value in (("image-size", image_size), ("channels", channels)):
        if value is not None and value < 1:
            raise ValueError(f"--{flag} {value}: must be at least 1")
    if name is None:
        return finished(_all_models(image_size, channels))
    return finished(_one_model(name, image_size, channels))


def _all_models(image_size: int | None, channels: int) -> list[catalogue.Row]:
    if image_size is None and channels == 3:
        installed = {name: importlib.util.find_spec(name) is not None for name in ("timm", "torchvision")}
        rows = [row for row in catalogue.stored() if installed.get(row.name.partition(":")[0], True)]
        skipped = [
            f"the networks of {name} are left out: {install_command('timm')} brings it"
            for name, there in installed.items()
            if not there
        ]
    else:
        rows, skipped = _count(image_size, channels)
    table = Table(box=None)
    for column in ("name", "px", "parameters", "GMAC", "width", "drops", "arXiv"):
        number = column in ("px", "parameters", "GMAC", "width")
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    family = ""
    for row in rows:
        previous, family = family, re.split("[-:]", row.name)[0]
        if previous not in ("", family):
            table.add_row()
        table.add_row(
            row.name, str(row.px), _millions(row.parameters), f"{row.multiply_adds / 1e9:.2f}",
            str(row.width), row.drops, row.paper,
        )  # fmt: skip
    show(table)
    for line in skipped:
        say(line)
    say(
        "\nGMAC: 10^9 multiply-adds for an image of px x px.\n"
        "drops: can process a subset of the tokens, as mae needs.\n"
        "A patch size at the end of a name can be any from 2 to 64: vit-s/8. All networks of timm and "
        "torchvision can be used: timm:regnety_032. `omma models vit-s/8 --image-size 96` explains one."
    )
    return rows


def _count(image_size: int | None, channels: int) -> tuple[list[catalogue.Row], list[str]]:
    """The listed backbones at this size, and lines about those that are left out."""
    rows: list[catalogue.Row] = []
    skipped: list[str] = []
    with Stages("counting parameters and multiply-adds ...") as stages:
        from omma import backbones

        names = catalogue.listed(backbones.names())
        for row in catalogue.counted(names, image_size, channels):
            if isinstance(row, catalogue.Row):
                rows.append(row)
            else:
                skipped.append(f"{row[0]} is left out: {row[1]}")
            stages("counting", len(rows) + len(skipped), len(names))
    return rows, skipped


def _one_model(name: str, image_size: int | None, channels: int) -> dict[str, Any]:
    from omma import backbones
    from omma.ops.cost import multiply_adds

    network, size = catalogue.outline(name, image_size, channels)
    macs = multiply_adds(network, (1, channels, size, size))
    options = backbones.options(name)
    paper = backbones.paper(name)
    rows, columns = network.grid(size, size)
    parameters = sum(p.numel() for p in network.parameters())
    summary = re.split(r"\.\s", inspect.getdoc(type(network)) or "")[0].replace("\n", " ").rstrip(".")
    say(f"{name}: {summary}" + (f" (arXiv {paper})" if paper else ""))
    table = Table(box=None, show_header=False)
    for line in (
        ("for", f"{size} x {size} px, {count(channels, 'channel')}"),
        ("parameters", _millions(parameters)),
        ("weights", f"{_memory(4 * parameters)} in fp32, {_memory(2 * parameters)} in bf16"),
        ("multiply-adds", f"{macs / 1e9:.2f} G an image"),
        ("features", f"{network.dim} wide; {rows} x {columns} patches of {network.patch} px"
                     + (f", {network.prefix} before them" if network.prefix else "")),
        ("layers", _layers(options)),
        ("drops tokens", "yes" if network.drops_tokens else "no"),
        ("other sizes", _other_sizes(network)),
    ):  # fmt: skip
        if line[1]:
            table.add_row(*map(Text, line))
    show(table)
    say("\noptions (--model.KEY VALUE)")
    table = Table(box=None, show_header=False)
    for key, value in sorted(options.items()):
        table.add_row(key, Text(str(value)))
    show(table)
    return {
        "model": name, "image_size": size, "channels": channels, "parameters": parameters,
        "multiply_adds": macs, "width": network.dim, "patches": [rows, columns], "options": options,
    }  # fmt: skip


def _millions(parameters: int) -> str:
    return f"{parameters / 1e6:.2f}M"


def _memory(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def _layers(options: dict[str, Any]) -> str:
    """The number of layers, if the options contain it."""
    if "depths" in options:
        return " + ".join(map(str, options["depths"]))
    return str(options.get("depth", ""))


def _other_sizes(network: Any) -> str:
    """What the network does with images of another size."""
    if ":" in network.name:
        return "as its library handles them"
    if hasattr(network, "other_sizes"):
        return network.other_sizes
    padding = f"padded with zeros (the mean colour) at right and bottom to a multiple of {network.patch} px"
    has_positions = getattr(network, "pos_embed", None) is not None
    return f"{padding}; positions interpolated" if has_positions else padding


def doctor() -> int:
    """Show which hardware and precision will be used, and why."""
    from omma.verbs.doctor import doctor as verb

    table = Table(box=None, show_header=False)
    found = verb()
    for name, value in found:
        table.add_row(name, Text(value))
    show(table)
    return finished(dict(found))
