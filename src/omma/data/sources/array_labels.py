"""Find the labels of images among the arrays of an .npz file."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from omma.core.words import count

_LABELS = re.compile(r"(^|_)(y|labels?|targets?)(_|$)", re.IGNORECASE)
_IMAGES = re.compile(r"(^|_)(x|images?|data)(_|$)", re.IGNORECASE)


def find_labels(
    arrays: Mapping[str, np.ndarray], objects: Sequence[str], images: str, n: int, side: str | None
) -> tuple[np.ndarray | None, str]:
    """Labels of the array `images`, or None and why there are none ("" where nothing looks like labels).

    Labels are an array whose name says so (y, label, labels, target): numbers or texts, [n] or [n, 1], which
    become [n]; or zeros and ones [n, k], one-hot or multi-hot. Of several, the one named most like the
    images, as `usps_labels` beside `usps`. objects: names of arrays of Python objects, which are never
    unpickled. side: what the name of the labels must contain, such as "train".
    """
    why = ""
    names = [key for key in (*arrays, *objects) if _LABELS.search(key)]
    names = [key for key in names if side is None or side.lower() in key.lower()]
    stem = _IMAGES.sub("_", images).strip("_").lower()
    for key in sorted(names, key=lambda key: _LABELS.sub("_", key).strip("_").lower() != stem):
        if key in objects:
            why = why or (
                f"{key} is an array of objects, which are never unpickled; save {key}.astype(str) instead"
            )
            continue
        labels, reason = _vector(arrays[key], n)
        if labels is not None:
            return labels, ""
        why = why or f"{key} {reason}"
    if not why and (others := _others(arrays, n)):
        why = f"no array is named labels or y; if {others[0]} holds the labels, name it so"
    return None, why


def _vector(values: np.ndarray, n: int) -> tuple[np.ndarray | None, str]:
    """Labels [n] or [n, k] from one array, or why it holds none."""
    shape = list(values.shape)
    if values.dtype.kind not in "buifUS" or values.ndim not in (1, 2):
        return None, f"(shape {shape}, type {values.dtype}) is no vector of numbers or texts"
    if len(values) != n:
        return None, f"has {count(len(values), 'entry', 'entries')} for {count(n, 'image')}"
    if values.size == n:
        return values.ravel(), ""
    if values.dtype.kind in "buif" and np.isin(values, (0, 1)).all():
        return values, ""
    return None, f"(shape {shape}) is neither a vector nor of zeros and ones"


def _others(arrays: Mapping[str, np.ndarray], n: int) -> list[str]:
    return [key for key, value in arrays.items() if value.ndim == 1 and len(value) == n > 1]
