"""Images as the model's method reconstructs them from what it saw, where the run keeps the whole method."""

import numpy as np

from omma.core.protocols import Key, Method
from omma.inspection.kinds import Explanation, Kind, Picture, Rows, Subject
from omma.inspection.shown import limits, shown

NO_METHOD = (
    "only a run of a method that reconstructs (mae, simmim, ...) can, while it has its checkpoint: give such "
    "a run's folder"
)


def lacks(subject: Subject) -> str | None:
    """Why there are none; the option "method" is the trained method (pretraining/saved_method.py)."""
    return None if subject.options.get("method") is not None else NO_METHOD


def explain(subject: Subject) -> Explanation:
    """Each image, what the encoder saw of it, and what the decoder made of that."""
    method: Method = subject.options["method"]
    key = Key(subject.seed, np.zeros(len(subject.pixels), np.int64), np.arange(len(subject.pixels)))
    made = method.reconstruct(subject.pixels, key)
    if made is None:
        return Explanation("Reconstructions", "", (), {}, (f"reconstructions: {NO_METHOD}",))
    original, seen = subject.shown, None
    if made.hidden is not None:
        seen = original.copy()
        seen[made.hidden.cpu().numpy()] = np.nan
    predicted = shown(made.images, subject.model.preprocess)
    rows = []
    for i, path in enumerate(subject.paths or [""] * len(original)):
        low, high = limits(original[i])  # one for all three, which makes brightness comparable
        cells = [original[i], *([] if seen is None else [seen[i]]), predicted[i]]
        scaled = [((cell[..., :3] - low) / (high - low)).clip(0, 1) for cell in cells]
        rows.append((Picture(scaled[0], path=path), *map(Picture, scaled[1:])))
    heads = ("original", *([] if seen is None else ["seen"]), "predicted")
    return Explanation(
        "Reconstructions", made.caption, (Rows(heads, tuple(rows)),), {"reconstructions": predicted}
    )


KIND = Kind(name="reconstruct", explain=explain, lacks=lacks)
