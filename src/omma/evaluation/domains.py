"""Which images of several domains can be compared, and which of them a probe trains and is tested on."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from omma.core.protocols import Images
from omma.core.words import count, enumerated
from omma.data.sources import domains as sources
from omma.data.sources.groups import Groups
from omma.data.sources.labels import remedy
from omma.data.sources.split import split_name
from omma.evaluation import align
from omma.evaluation.leakage import FEW as FEW_GROUPS
from omma.evaluation.split import Pairs, folds

FOLDS = 5
FEW = 10_000  # images from which on a single fold is tested, since each takes a probe a domain

PROTOCOLS = ("linear", "knn")


def check(protocol: str, alignment: str | None) -> None:
    """Raise ValueError for a name that is no probe, or no alignment."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol {protocol!r}: choose among {', '.join(PROTOCOLS)}")
    if alignment is not None and alignment not in align.NAMES:
        raise ValueError(f"align {alignment!r}: choose among {', '.join(align.NAMES)}")


class Compared(NamedTuple):
    """Labelled images of several domains, of classes that all of these have."""

    by: str  # the column
    names: tuple[str, ...]  # of the domains
    classes: tuple[str, ...]
    rows: Int[np.ndarray, "n"]  # of the collection
    domains: Int[np.ndarray, "n"]
    labels: Int[np.ndarray, "n"]
    groups: Int[np.ndarray, "n"] | None
    grouped: str  # the column of the groups, "" for none
    notes: tuple[str, ...]

    def readable(self, rows: Int[np.ndarray, "m"]) -> "Compared":
        """With images `rows` of the field alone."""
        groups = None if self.groups is None else self.groups[rows]
        return self._replace(
            rows=self.rows[rows], domains=self.domains[rows], labels=self.labels[rows], groups=groups
        )

    @property
    def strata(self) -> Int[np.ndarray, "n"]:
        """A number for each pair of domain and class."""
        return self.domains * len(self.classes) + self.labels

    @property
    def units(self) -> Int[np.ndarray, "n"]:
        """What is drawn for an interval: the group of each image, or the image itself."""
        return np.arange(len(self.rows)) if self.groups is None else self.groups


def comparable(images: Images, domains: sources.Domains, groups: Groups | None = None) -> Compared:
    """Images of the classes that all domains have two images (or groups) of.

    A domain with fewer than two such classes is left out. Raises ValueError unless two domains have two
    classes in common.
    """
    source = str(getattr(images, "source", "")) or "images"
    own = images.labels
    if own is None:
        raise ValueError(f"{source} has no labels, which accuracy needs: {remedy(images)}")
    known = (own >= 0) & (domains.codes >= 0)
    units = np.arange(len(own)) if groups is None else groups.codes
    many = np.zeros((len(domains.names), len(images.classes)), np.int64)  # images or groups of each
    triples = np.unique(np.stack([domains.codes, own, units])[:, known], axis=1)
    np.add.at(many, (triples[0], triples[1]), 1)
    usable = many >= 2
    kept = usable.sum(1) >= 2
    common = usable[kept].all(0) & kept.any()
    if kept.sum() < 2 or common.sum() < 2:
        thing = "images" if groups is None else f"groups ({groups.name})"
        has = enumerated([f"{name} {n}" for name, n in zip(domains.names, usable.sum(1).tolist())])
        raise ValueError(
            f"{source}, by {domains.name}: two domains need two classes in common, with two {thing} or more "
            f"in each (such classes: {has}; in common: {int(common.sum())}); name another column with --by, "
            "or with --label-depth where the classes are"
        )
    number = np.where(kept, np.cumsum(kept) - 1, -1)
    label = np.where(common, np.cumsum(common) - 1, -1)
    rows = np.flatnonzero(known & kept[domains.codes] & common[own])
    return Compared(
        by=domains.name,
        names=tuple(name for name, keep in zip(domains.names, kept) if keep),
        classes=tuple(name for name, keep in zip(images.classes, common) if keep),
        rows=rows,
        domains=number[domains.codes[rows]],
        labels=label[own[rows]],
        groups=None if groups is None else groups.codes[rows],
        grouped="" if groups is None else groups.name,
        notes=tuple(_notes(images, domains, kept, common, len(own) - len(rows))),
    )


def _notes(
    images: Images,
    domains: sources.Domains,
    kept: np.ndarray,
    common: np.ndarray,
    unused: int,
) -> Iterator[str]:
    if len(out := [name for name, keep in zip(domains.names, kept) if not keep]):
        yield f"left out, with fewer than two classes: {enumerated(out)}"
    if not common.all():
        names = [name for name, keep in zip(images.classes, common) if not keep]
        classes = count(len(names), "class", "classes")
        yield f"left out, not in all domains: {classes} ({', '.join(names[:5])})"
    if unused:
        yield f"left out, without label or domain, or of these: {count(unused, 'image')}"


def pairs_of(images: Images, field: Compared, seed: int, asked: bool = False) -> tuple[Pairs, str]:
    """Rows of the field to train and to test on, and how they were made.

    The collection's own split, where each domain and class is on both sides of it (unless groups are asked
    for and it divides them); else FOLDS folds that no group straddles, stratified by domain and class, so
    that every image is tested once. From FEW images on a fold alone is, if one has images of all domains.
    """
    strata = field.strata
    if images.splits is not None:
        sides = images.splits[field.rows]
        train, test = (np.flatnonzero(sides == side) for side in ("train", "test"))
        whole = all(len(np.unique(strata[part])) == len(np.unique(strata)) for part in (train, test))
        both = [] if field.groups is None else np.intersect1d(field.groups[train], field.groups[test])
        if whole and not (asked and len(both)):
            shared = f" ({count(len(both), 'group')} on both sides)" if len(both) else ""
            return [(train, test)], split_name(images) + shared
    made = folds(strata, seed, FOLDS, field.groups)
    whole = f", none of which divides a {field.grouped}" if field.grouped else ""
    all_domains = [pair for pair in made if len(np.unique(field.domains[pair[1]])) == len(field.names)]
    if len(field.rows) < FEW or not all_domains:
        return made, f"{len(made)} folds{whole}: every image is tested once"
    chosen = max(all_domains, key=lambda pair: len(np.unique(strata[pair[1]])))
    return [chosen], f"one of {len(made)} folds{whole} is tested"


def few_groups(field: Compared, rows: Int[np.ndarray, "m"]) -> str:
    """What to know of intervals that draw few groups of a domain; "" where none do. rows: those tested."""
    if field.groups is None:
        return ""
    each = [len(np.unique(field.groups[rows[field.domains[rows] == k]])) for k in range(len(field.names))]
    least = int(np.argmin(each))
    if each[least] >= FEW_GROUPS:
        return ""
    number = count(each[least], f"group by {field.grouped}", f"groups by {field.grouped}")
    return f"intervals draw groups, of which {field.names[least]} has too few ({number}): true ones are wider"


def tested(pairs: Pairs) -> Int[np.ndarray, "m"]:
    """The rows that any of the pairs tests."""
    return np.unique(np.concatenate([held_out for _, held_out in pairs]))
