"""Groups of images by k-means, and names for them."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from sklearn.cluster import KMeans, MiniBatchKMeans

MOST = 24  # clusters where their number is not given
LARGE = 50_000  # images above which k-means reads mini-batches
_WORD = re.compile(r"[^\W\d_]{3,}")
_COMMON = frozenset(
    [
        "the",
        "and",
        "with",
        "are",
        "his",
        "her",
        "their",
        "its",
        "two",
        "three",
        "for",
        "from",
        "that",
        "this",
        "into",
        "over",
        "while",
        "who",
        "has",
        "one",
        "near",
        "onto",
        "some",
        "there",
        "other",
        "others",
        "very",
        "all",
        "her",
        "him",
        "them",
        "they",
        "she",
    ]
)


@dataclass(frozen=True)
class Clusters:
    """The cluster of each image; cluster 0 is the largest."""

    of: Int[np.ndarray, "n"]
    names: tuple[str, ...]


def number(n: int) -> int:
    """Clusters for n images: one for each 40 up to some 400, then by the square root, at most MOST."""
    return max(1, min(MOST, n // 4, max(2, round(math.sqrt(n) / 2))))


def clusters(
    components: Float[np.ndarray, "n w"],
    k: int | None = None,
    seed: int = 0,
    *,
    classes: Sequence[str | None] | None = None,
    captions: Sequence[str] | None = None,
) -> Clusters:
    """k-means of the vectors' principal components; named by classes, else by captions, else by number.

    k: `number` by default. The same input gives the same clusters. Raises ValueError for k that does not lie
    between 1 and the number of images.
    """
    n = len(components)
    if k is not None and not 1 <= k <= n:
        raise ValueError(f"clusters={k}: must be from 1 to {n}, the number of images")
    distinct = len(np.unique(components, axis=0))
    k = min(number(n) if k is None else k, distinct)
    kind = KMeans if n <= LARGE else MiniBatchKMeans
    starts: Any = 3 if n <= 5_000 else 1
    found = np.asarray(kind(k, random_state=seed, n_init=starts).fit(components).labels_)
    sizes = np.bincount(found, minlength=k)
    order = np.argsort(-sizes, kind="stable")[: np.count_nonzero(sizes)]
    place = np.zeros(k, np.int64)
    place[order] = np.arange(len(order))
    of = place[found]
    if classes is not None:
        words = _by_class(of, classes)
    elif captions is not None:
        words = _by_words(of, captions)
    else:
        words = [""] * len(order)
    return Clusters(of, tuple(f"{c + 1}{word and ': ' + word}" for c, word in enumerate(words)))


def _by_class(of: Int[np.ndarray, "n"], classes: Sequence[str | None]) -> list[str]:
    """The most frequent class, and the second where it is not much rarer."""
    counts = [Counter[str]() for _ in range(of.max() + 1)]
    for cluster, name in zip(of.tolist(), classes):
        if name:
            counts[cluster][name] += 1
    words = []
    for count in counts:
        best = sorted(count.items(), key=lambda item: (-item[1], item[0]))[:2]
        words.append(", ".join(name for name, times in best if times > 0.5 * best[0][1]))
    return words


def _by_words(of: Int[np.ndarray, "n"], captions: Sequence[str]) -> list[str]:
    """Two words whose share of the cluster's images is most above that of all images, weighted by both.

    The weight is p log(p / q): the word's part of the Kullback-Leibler divergence.
    """
    texts = [{w for w in _WORD.findall(text.lower()) if w not in _COMMON} for text in captions]
    everywhere = Counter(word for text in texts for word in text)
    words = []
    for cluster in range(of.max() + 1):
        rows = np.flatnonzero(of == cluster)
        count = Counter(word for i in rows for word in texts[i])
        gain = {
            word: times / len(rows) * math.log(times / len(rows) * len(texts) / everywhere[word])
            for word, times in count.items()
            if times > 1
        }
        best = sorted((word for word in gain if gain[word] > 0), key=lambda word: (-gain[word], word))
        words.append(", ".join(best[:2]))
    return words
