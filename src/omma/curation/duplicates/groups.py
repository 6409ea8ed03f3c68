"""Groups of duplicates: the best image is kept, and whatever is a copy of that one goes with it.

Connected components would chain: a is like b, b is like c, and c is dropped for the sake of an a that looks
nothing like it. Here every image that goes is a duplicate of the very image that stays.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from omma.core.protocols import Images


@dataclass(frozen=True)
class Quality:
    """What decides which of several copies is kept."""

    height: int  # pixels
    width: int
    bytes: int = -1  # of the file; -1: unknown
    time: int = 0  # of modification, ns; 0: unknown

    @property
    def order(self) -> tuple[int, int, int]:
        """Larger is better: more pixels, then more bytes (less compressed), then older."""
        return self.height * self.width, self.bytes, -self.time if self.time else -(2**63)


@dataclass(frozen=True)
class Group:
    """Copies of one image."""

    kept: int  # row of the collection
    why: str  # what makes it the best
    others: tuple[int, ...]  # rows that are duplicates of it, and may be removed


def groups(
    pairs: Iterable[tuple[int, int]],
    quality: Mapping[int, Quality],
    protected: Collection[int] = (),
    classes: Iterable[Sequence[int]] = (),
) -> tuple[Group, ...]:
    """Groups of images from pairs of duplicates, by the image that is kept.

    Greedy: the best image that is left is kept, and the images paired with it go. classes: images that are
    the same, whose first stands for all of them in the pairs. Images that are `protected` (those of a test
    split) are kept before all others, and never go.
    """
    safe = set(protected)

    def rank(row: int) -> tuple:
        return row not in safe, *(-value for value in quality[row].order), row

    members = {rows[0]: sorted(rows, key=rank) for rows in classes}
    near: dict[int, set[int]] = {head: set() for head in members}
    for a, b in pairs:
        near.setdefault(a, set()).add(b)
        near.setdefault(b, set()).add(a)
    for row in near:
        members.setdefault(row, [row])
    taken: set[int] = set()
    found: list[Group] = []
    for node in sorted(near, key=lambda node: rank(members[node][0])):
        if node in taken:
            continue
        going = {other for other in near[node] - taken if members[other][0] not in safe}
        taken |= going | {node}
        kept, *same = members[node]
        others = sorted({*same, *(row for other in going for row in members[other])} - safe)
        if others:
            rest = [quality[row] for row in others]
            found.append(Group(kept, _why(quality[kept], rest, kept in safe), tuple(others)))
    return tuple(sorted(found, key=lambda group: group.kept))


def _why(kept: Quality, others: Sequence[Quality], protected: bool) -> str:
    """The first property in which the kept image is better than all others."""
    if protected:
        return "of the test split"
    if all(kept.order[0] > other.order[0] for other in others):
        return f"the largest ({kept.width} x {kept.height})"
    if all(kept.order[:2] > other.order[:2] for other in others):
        return "the least compressed" if kept.bytes >= 0 else "the first"
    if kept.time and all(kept.order > other.order for other in others):
        return "the oldest"
    return "the first"


def qualities(images: Images, rows: Iterable[int], shapes: dict[int, tuple[int, int]]) -> dict[int, Quality]:
    """The quality of images whose (height, width) is known; sizes and times where they are files."""
    identity = getattr(images, "identity", None)
    stats = None if identity is None else identity.stats
    found: dict[int, Quality] = {}
    for row in rows:
        size, time = (-1, 0) if stats is None else (int(value) for value in np.asarray(stats[row]))
        found[row] = Quality(*shapes[row], size, time)
    return found
