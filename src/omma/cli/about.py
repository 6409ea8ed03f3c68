"""Commands that inform: `omma methods`, `omma models` and `omma doctor`."""

import dataclasses
import inspect
import re
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.table import Table
from rich.text import Text

from omma.cli.shared import out

if TYPE_CHECKING:  # it imports torch, which takes a second
    from omma.core.protocols import Needs


def methods(name: Annotated[str | None, tyro.conf.Positional] = None) -> int:
    """List the pretraining methods, or explain one.

    Args:
        name: The method to explain.
    """
    from omma import methods as package
    from omma.pretraining.requirements import needs_of

    if name is None:
        table = Table(box=None, show_header=False)
        for method in package.names():
            table.add_row(method, Text(package.get(method).doc.splitlines()[0]))
        out.print(table)
        out.print("\n`omma methods NAME` explains one.")
        return 0
    file = package.get(name)
    out.print(file.doc, markup=False)
    if needs := _needs_in_words(needs_of(name, file.paper(224, "vit-s/16").config)):
        out.print(f"\nNeeds in addition to images: {'; '.join(needs)}.", markup=False)
    out.print("\noptions (--method.KEY VALUE): the paper's values, and what the small-data recipe changes")
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


def models(
    name: Annotated[str | None, tyro.conf.Positional] = None, image_size: int | None = None, channels: int = 3
) -> int:
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
        _all_models(image_size, channels)
    else:
        _one_model(name, image_size, channels)
    return 0


def _outline(name: str, image_size: int | None, channels: int) -> tuple[Any, int]:
    """A network without weights, and its image size: by default 224 px, or 32 px for patches up to 8 px."""
    from omma import backbones

    size = 224 if image_size is None else image_size
    if image_size is None and "/w" in name:  # Swin's window covers the whole map of its last stage
        size = 32 * backbones.options(name)["window"]
    network = backbones.outline(name=name, image_size=size, channels=channels)
    if image_size is None and network.patch <= 8:
        size = 32
        network = backbones.outline(name=name, image_size=size, channels=channels)
    return network, size


def _all_models(image_size: int | None, channels: int) -> None:
    from omma import backbones
    from omma.ops.cost import multiply_adds

    table = Table(box=None)
    for column in ("name", "px", "parameters", "GMAC", "width", "drops", "arXiv"):
        number = column in ("px", "parameters", "GMAC", "width")
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    skipped: list[str] = []
    family = ""
    with out.status("counting"):
        for name in _rows(backbones.names()):
            try:
                network, size = _outline(name, image_size, channels)
                count = multiply_adds(network, (1, channels, size, size))
            except ValueError as error:  # a missing library, or a size that the network cannot process
                skipped.append(f"{name} is left out: {error}")
                continue
            previous, family = family, re.split("[-:]", name)[0]
            if previous not in ("", family):
                table.add_row()
            table.add_row(
                name, str(size), _millions(network), f"{count / 1e9:.2f}", str(network.dim),
                "yes" if network.drops_tokens else "no", backbones.paper(name),
            )  # fmt: skip
    out.print(table)
    for line in skipped:
        out.print(line, markup=False)
    out.print(
        "\nGMAC: 10^9 multiply-adds for an image of px x px.\n"
        "drops: can process a subset of the tokens, as mae needs.\n"
        "A patch size at the end of a name can be any from 2 to 64: vit-s/8. All networks of timm and\n"
        "torchvision can be used: timm:regnety_032. `omma models vit-s/8 --image-size 96` explains one."
    )


def _rows(names: list[str]) -> list[str]:
    """One of the names that differ only in the patch size: 16 px, or 4 px for vit-n."""
    chosen: dict[str, str] = {}
    for name in names:
        stem, _, patch = name.partition("/")
        if stem not in chosen or not patch.isdigit() or patch == ("4" if stem == "vit-n" else "16"):
            chosen[stem if patch.isdigit() else name] = name
    return list(chosen.values())


def _one_model(name: str, image_size: int | None, channels: int) -> None:
    from omma import backbones
    from omma.ops.cost import multiply_adds

    network, size = _outline(name, image_size, channels)
    count = multiply_adds(network, (1, channels, size, size))
    options = backbones.options(name)
    paper = backbones.paper(name)
    rows, columns = network.grid(size, size)
    parameters = sum(p.numel() for p in network.parameters())
    summary = re.split(r"\.\s", inspect.getdoc(type(network)) or "")[0].replace("\n", " ").rstrip(".")
    out.print(f"{name}: {summary}" + (f" (arXiv {paper})" if paper else ""), markup=False)
    table = Table(box=None, show_header=False)
    for line in (
        ("for", f"{size} x {size} px, {channels} channel{'s' if channels > 1 else ''}"),
        ("parameters", _millions(network)),
        ("weights", f"{_memory(4 * parameters)} in fp32, {_memory(2 * parameters)} in bf16"),
        ("multiply-adds", f"{count / 1e9:.2f} G an image"),
        ("features", f"{network.dim} wide; {rows} x {columns} patches of {network.patch} px"
                     + (f", {network.prefix} before them" if network.prefix else "")),
        ("layers", _layers(options)),
        ("drops tokens", "yes" if network.drops_tokens else "no"),
        ("other sizes", _other_sizes(network)),
    ):  # fmt: skip
        if line[1]:
            table.add_row(*line)
    out.print(table)
    out.print("\noptions (--model.KEY VALUE)")
    table = Table(box=None, show_header=False)
    for key, value in sorted(options.items()):
        table.add_row(key, str(value))
    out.print(table)


def _millions(network: Any) -> str:
    return f"{sum(p.numel() for p in network.parameters()) / 1e6:.2f}M"


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
    padding = f"padded with zeros (the mean colour) at right and bottom to a multiple of {network.patch} px"
    has_positions = getattr(network, "pos_embed", None) is not None
    return f"{padding}; positions interpolated" if has_positions else padding


def doctor() -> int:
    """Show which hardware and precision will be used, and why."""
    from omma.verbs.doctor import doctor as verb

    table = Table(box=None, show_header=False)
    for name, value in verb():
        table.add_row(name, value)
    out.print(table)
    return 0
