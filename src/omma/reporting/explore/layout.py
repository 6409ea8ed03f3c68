"""Where images stand on the map: UMAP [McInnes 2018, arXiv 1802.03426] of their neighbours, or PCA."""

import importlib.util
import math
import warnings
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import KDTree
from sklearn.decomposition import PCA

from omma.core.checks import one_of
from omma.core.errors import need
from omma.ops.nearest import Neighbours

Kind = Literal["auto", "umap", "pca"]
NEIGHBOURS = 15  # of UMAP, its default, the image itself among them
FEWEST = 16  # images that UMAP has neighbours for
WIDTH = 50  # principal components that k-means and UMAP's start read
SAMPLE = 5_000  # images that the map's faithfulness is measured on
GOLDEN = math.pi * (3 - math.sqrt(5))  # radians between neighbours of a sunflower [Vogel 1979]


@dataclass(frozen=True)
class Layout:
    """Places on the map, from 0 to 1 along its longer side, y upwards; and what made them, in words."""

    xy: Float[np.ndarray, "n 2"]
    kind: Literal["umap", "pca"]
    note: str


def check(kind: str, n: int | None = None) -> None:
    """Raise ValueError for an unknown kind, UMAP that is not installed, or too few images for it."""
    one_of("layout", kind, get_args(Kind))
    if kind == "umap":
        if importlib.util.find_spec("umap") is None:
            need("umap", "map")
        if n is not None and n < FEWEST:
            raise ValueError(f"layout umap: needs {FEWEST} images or more, not {n}; choose pca")


def reduced(vectors: Float[np.ndarray, "n d"], seed: int) -> tuple[Float[np.ndarray, "n w"], float]:
    """The first principal components (at most WIDTH), float32; and the share of variance in the first two."""
    wide = min(WIDTH, *vectors.shape)
    if len(vectors) < 2 or not np.ptp(vectors, axis=0).any():
        return np.zeros((len(vectors), max(wide, 2)), np.float32), 1.0
    pca = PCA(wide, random_state=seed).fit(vectors)
    components = pca.transform(vectors).astype(np.float32)
    missing = max(0, 2 - wide)
    share = float(pca.explained_variance_ratio_[:2].sum())
    return np.pad(components, ((0, 0), (0, missing))), share


def layout(
    components: Float[np.ndarray, "n w"],
    share: float,
    neighbours: Neighbours | None,
    kind: Kind = "auto",
    seed: int = 0,
) -> Layout:
    """Places of images from what `reduced` gives and their neighbours by cosine, at least NEIGHBOURS - 1.

    The same input gives the same map. auto: UMAP where it is installed and there are enough images. Images at
    one place are set apart. Raises ValueError as `check` does.
    """
    check(kind, len(components))
    able = neighbours is not None and len(components) >= FEWEST and np.ptp(components, axis=0).any()
    if kind == "auto":
        kind = "umap" if able and importlib.util.find_spec("umap") is not None else "pca"
    if kind == "umap" and able:
        assert neighbours is not None
        places = _umap(components, neighbours, seed)
        words = f"The map is UMAP's, of each image's {NEIGHBOURS - 1} nearest by cosine."
    else:
        kind, places = "pca", components[:, :2]
        words = f"The map is the first two principal components, which hold {share:.0%} of the variance."
    xy = apart(_framed(places))
    if neighbours is not None and len(xy) > 20:
        words += f" Of an image's 10 nearest, {faithful(xy, neighbours):.0%} are among its 50 nearest here."
    return Layout(xy, kind, words)


def faithful(xy: Float[np.ndarray, "n 2"], neighbours: Neighbours, k: int = 10, within: int = 50) -> float:
    """The mean share of an image's k nearest by vector that are among its `within` nearest on the map.

    Of at most SAMPLE images, evenly spaced in the collection.
    """
    rows = np.unique(np.linspace(0, len(xy) - 1, min(len(xy), SAMPLE)).astype(int))
    near = KDTree(xy).query(xy[rows], k=min(within + 1, len(xy)))[1]
    wanted = neighbours.indices[rows, :k]
    return float(np.mean([np.isin(w, n).mean() for w, n in zip(wanted, near)]))


def apart(xy: Float[np.ndarray, "n 2"], step: float = 1 / 2000) -> Float[np.ndarray, "n 2"]:
    """Images at one place, to within 1e-5, as a sunflower around it, so that each can be seen and pointed at.

    step: the distance between them, of the map's side.
    """
    _, place, sizes = np.unique(np.round(xy, 5), axis=0, return_inverse=True, return_counts=True)
    place = place.reshape(-1)
    if sizes.max(initial=1) == 1:
        return xy.astype(np.float32)
    order = np.argsort(place, kind="stable")
    rank = np.empty(len(xy), np.int64)  # of an image among those at its place
    rank[order] = np.arange(len(xy)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    radius, angle = step * np.sqrt(rank), GOLDEN * rank
    moved = xy + (radius * np.stack([np.cos(angle), np.sin(angle)])).T
    return _framed(moved)


def hilbert(xy: Float[np.ndarray, "n 2"], bits: int = 12) -> Int[np.ndarray, "n"]:
    """Each place's position along Hilbert's curve: places near on it are near on the map."""
    x, y = (np.clip(xy, 0, 1).T * (2**bits - 1)).astype(np.int64)
    position = np.zeros(len(xy), np.int64)
    for level in reversed(range(bits)):
        side = 1 << level
        right, up = (x & side) > 0, (y & side) > 0
        position += side * side * ((3 * right) ^ up)
        flip = right & ~up  # a quarter turn, so that the curve's pieces meet
        x, y = np.where(flip, 2**bits - 1 - x, x), np.where(flip, 2**bits - 1 - y, y)
        x, y = np.where(up, x, y), np.where(up, y, x)
    return position


def _umap(components: Float[np.ndarray, "n w"], neighbours: Neighbours, seed: int) -> np.ndarray:
    umap = need("umap", "map")
    own = np.arange(len(components))[:, None]
    near = min(NEIGHBOURS - 1, neighbours.indices.shape[1])
    index = np.hstack([own, neighbours.indices[:, :near]])
    distance = np.hstack([0 * own, np.clip(1 - neighbours.similarities[:, :near], 0, 2)]).astype(np.float32)
    start = components[:, :2] / max(float(components[:, :2].std()), 1e-12) * 1e-1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a search index that only `transform` would need
        return umap.UMAP(
            n_neighbors=near + 1,
            min_dist=0.1,
            init=10 * start,
            random_state=seed,
            n_jobs=1,
            precomputed_knn=(index, distance),
        ).fit_transform(components)


def _framed(places: np.ndarray) -> Float[np.ndarray, "n 2"]:
    """Moved and scaled (both axes alike) so that the longer side goes from 0 to 1."""
    places = np.asarray(places, np.float64)
    low, high = places.min(0), places.max(0)
    size = float((high - low).max()) or 1.0
    return (0.5 + (places - (low + high) / 2) / size).astype(np.float32)
