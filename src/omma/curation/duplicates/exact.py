"""Images with the same bytes or the same pixels; both are equivalences, so they form classes."""

from collections import defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

import numpy as np

from omma.core.protocols import BadImage, Images
from omma.curation.duplicates.hashes import Hashes, near_pairs, pixel_digest

DECODED = (
    2  # bits by which the same pixels may differ: JPEG is hashed at reduced scale, other formats are not
)


@dataclass
class Decoder:
    """Sizes and digests of fully decoded images, each read once."""

    images: Images
    known: dict[int, tuple[int, int, bytes] | None] = field(default_factory=dict)

    def __call__(self, row: int) -> tuple[int, int, bytes] | None:
        """Height, width and digest of the pixels; None where the image can no longer be read."""
        if row not in self.known:
            try:
                image = self.images.read(row)
                self.known[row] = (*image.shape[:2], pixel_digest(image))
            except BadImage:
                self.known[row] = None
        return self.known[row]


@dataclass(frozen=True)
class Same:
    """Classes of images that are the same, by bytes or by pixels."""

    classes: tuple[tuple[int, ...], ...]  # of two images and more
    hashes: Hashes


def same(hashes: Hashes, decoder: Decoder) -> Same:
    """Classes of the same bytes, joined where pixels are the same.

    Only images whose perceptual hashes agree, or that are blank, are decoded in full.
    """
    readable = np.flatnonzero(hashes.usable | hashes.blank)
    by_bytes = _classes((row, hashes.content[row] or ("row", row)) for row in readable.tolist())
    first = {row: rows[0] for rows in by_bytes for row in rows}
    heads = np.array([rows[0] for rows in by_bytes], np.int64)
    shown = heads[hashes.usable[heads]]
    asked = set(heads[hashes.blank[heads]].tolist())
    # as they are, not mirrored: one column of the hashes
    for i, j, _ in near_pairs(hashes.perceptual[shown], DECODED, orientations=1):
        asked.update(shown[i].tolist(), shown[j].tolist())
    digests = {row: found[2] for row in sorted(asked) if (found := decoder(row)) is not None}
    classes = _classes((row, digests.get(first[row], ("row", first[row]))) for row in readable.tolist())
    return Same(tuple(tuple(rows) for rows in classes if len(rows) > 1), hashes)


def _classes(keys: Iterable[tuple[int, Hashable]]) -> list[list[int]]:
    """Rows of the same key, in order."""
    found: dict[Hashable, list[int]] = defaultdict(list)
    for row, key in keys:
        found[key].append(row)
    return list(found.values())
