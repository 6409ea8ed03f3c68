"""The backbones that `omma models` lists, with their cost.

Counting them takes ten seconds, so the counts are stored in models.csv. `main` writes it again, and a test
compares it with the networks.
"""

import csv
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

FILE = Path(__file__).with_name("models.csv")


class Row(NamedTuple):
    """One network at one image size."""

    name: str
    px: int  # along a side
    parameters: int
    multiply_adds: int  # an image
    width: int  # of its features
    drops: str  # "yes" | "no": can it process a subset of the tokens?
    paper: str  # the arXiv number


def stored() -> list[Row]:
    """All listed backbones at their usual size, on RGB."""
    with open(FILE, newline="", encoding="utf-8") as stream:
        return [
            Row(name, int(px), int(parameters), int(macs), int(width), drops, paper)
            for name, px, parameters, macs, width, drops, paper in itertools.islice(
                csv.reader(stream), 1, None
            )
        ]


def counted(
    names: Iterable[str], image_size: int | None = None, channels: int = 3
) -> Iterator[Row | tuple[str, ValueError]]:
    """The same, counted now; or a name with the error for a missing library or a size it cannot process."""
    from omma import backbones
    from omma.ops.cost import multiply_adds

    for name in names:
        try:
            network, size = outline(name, image_size, channels)
            macs = multiply_adds(network, (1, channels, size, size))
        except ValueError as error:
            yield name, error
            continue
        parameters = sum(p.numel() for p in network.parameters())
        drops = "yes" if network.drops_tokens else "no"
        yield Row(name, size, parameters, int(macs), network.dim, drops, backbones.paper(name))


def outline(name: str, image_size: int | None, channels: int) -> tuple[Any, int]:
    """A network without weights, and its image size.

    By default 224 px, or 32 px for patches up to 8 px and for the classical networks.
    """
    from omma import backbones
    from omma.backbones import classic

    size = 224 if image_size is None else image_size
    if image_size is None and "/w" in name:  # Swin's window covers the whole map of its last stage
        size = 32 * backbones.options(name)["window"]
    network = backbones.outline(name=name, image_size=size, channels=channels)
    if image_size is None and (network.patch <= 8 or classic.kind(name)):
        size = 32
        network = backbones.outline(name=name, image_size=size, channels=channels)
    return network, size


def listed(names: Iterable[str]) -> list[str]:
    """One of the names that differ only in the patch size: 16 px, or 4 px for vit-n."""
    chosen: dict[str, str] = {}
    for name in names:
        stem, _, patch = name.partition("/")
        if stem not in chosen or not patch.isdigit() or patch == ("4" if stem == "vit-n" else "16"):
            chosen[stem if patch.isdigit() else name] = name
    return list(chosen.values())


def main() -> None:
    """Write models.csv."""
    from omma import backbones

    rows = [row for row in counted(listed(backbones.names())) if isinstance(row, Row)]
    with open(FILE, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(Row._fields)
        writer.writerows(rows)
