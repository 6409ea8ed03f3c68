"""Patch features as colours: their principal components, in two stages [Oquab 2023, 2304.07193, figure 1]."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float

from omma.inspection.kinds import Explanation, Heat, Kind, Picture, Rows, Subject

LEAST = 4  # patches of foreground that three components need
PERCENTILES = (1, 99)  # shown as 0 and 1


class Components(NamedTuple):
    """Colours of n images' patches, and what the first stage has found."""

    colours: Float[np.ndarray, "n gh gw 3"]  # in [0, 1]; NaN in the background
    first: Float[
        np.ndarray, "n gh gw"
    ]  # the first stage's component, foreground above 0; NaN for bad patches
    explained: Float[np.ndarray, "3"]  # shares of the foreground's variance
    border: float  # share of the border's patches that are foreground
    inside: float  # share of the others that are


def principal(
    rows: Float[np.ndarray, "n d"], count: int
) -> tuple[Float[np.ndarray, "d"], Float[np.ndarray, "d k"], Float[np.ndarray, "k"]]:
    """Mean, directions and shares of variance of the first components, in fp64; directions of unit length.

    The sign of each is such that its largest entry is positive, so that equal rows give equal colours.
    """
    mean = rows.mean(0)
    centred = rows - mean
    values, vectors = np.linalg.eigh(centred.T @ centred)
    vectors = vectors[:, ::-1][:, :count]
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(0)[None], 0)
    total = max(float(values.clip(0).sum()), np.finfo(np.float64).tiny)
    return mean, vectors * np.where(largest < 0, -1.0, 1.0), values[::-1][:count].clip(0) / total


def components(patches: Float[np.ndarray, "n gh gw d"]) -> Components:
    """First the component that splits foreground from background, then three of the foreground alone.

    The first stage's sign is chosen so that the mean over the patches at the images' borders is below that
    over the others, and the threshold is 0, the mean of all patches. Both stages look at all images together,
    so that equal colours mean equal features. Patches that are not finite are left out. Raises ValueError
    where there is no foreground: features that are all alike, or images of fewer than 3 x 3 patches.
    """
    n, gh, gw, d = patches.shape
    if min(gh, gw) < 3:
        raise ValueError(f"{gh} x {gw} patches are too few to tell a border from the rest")
    flat = patches.reshape(-1, d).astype(np.float64)
    finite = np.isfinite(flat).all(1)
    edge = _edge(n, gh, gw).reshape(-1)
    if not (finite & edge).any() or not (finite & ~edge).any():
        raise ValueError("the features of all patches are NaN or infinite")
    mean, direction, _ = principal(flat[finite], 1)
    first = np.full(len(flat), np.nan)
    first[finite] = (flat[finite] - mean) @ direction[:, 0]
    scale = np.abs(flat[finite]).max()
    if np.nanmax(np.abs(first)) <= 1e-6 * max(scale, 1e-30):
        raise ValueError("no foreground: the features of all patches are alike")
    if first[finite & edge].mean() > first[finite & ~edge].mean():
        first = -first
    front = finite & (np.nan_to_num(first) > 0)
    if front.sum() < LEAST:
        raise ValueError(f"no foreground: {front.sum()} patches lie above the mean of the first component")
    centre, directions, explained = principal(flat[front], 3)
    projected = (flat[front] - centre) @ directions
    low, high = np.percentile(projected, PERCENTILES, axis=0)
    wide = high - low > 1e-9 * max(scale, 1e-30)
    colours = np.full((len(flat), 3), np.nan)
    colours[front] = np.where(wide, (projected - low) / np.where(wide, high - low, 1), 0.5).clip(0, 1)
    return Components(
        colours.reshape(n, gh, gw, 3), first.reshape(n, gh, gw), explained,
        float(front[finite & edge].mean()), float(front[finite & ~edge].mean()),
    )  # fmt: skip


def _edge(n: int, gh: int, gw: int) -> Bool[np.ndarray, "n gh gw"]:
    """Which patches lie at the border of their image."""
    edge = np.ones((n, gh, gw), bool)
    edge[:, 1:-1, 1:-1] = False
    return edge


@torch.no_grad()
def features(subject: Subject) -> Float[np.ndarray, "n gh gw d"]:
    """The patches' features, after the last norm where the network has one; no class token, no registers."""
    parts = [subject.encoder(pixels).patches.float().cpu() for pixels in subject.pixels.split(subject.batch)]
    return torch.cat(parts).unflatten(1, subject.grid).numpy()


def lacks(subject: Subject) -> str | None:
    """Why there are no colours."""
    rows, columns = subject.grid
    if min(rows, columns) < 3:
        return f"{subject.encoder.name} has {rows} x {columns} patches of such images, too few"
    return None


def explain(subject: Subject) -> Explanation:
    """Colours of the foreground, and the component that chose it."""
    caption = (
        "Equal colours, equal features: the first three principal components of the foreground's patches, of "
        "all these images together. Foreground are the patches above the mean of the first component of all "
        "patches (right), whose sign is such that the images' borders are background; grey is background. "
        "It shows what the network tells apart, not what an answer rests on."
    )
    try:
        found = components(features(subject))
    except ValueError as error:
        return Explanation("Patch features", caption, (), {}, (f"patch features: {error}",))
    rows = []
    for i, (colours, first) in enumerate(zip(found.colours, found.first)):
        text = "" if np.isfinite(colours).any() else "no foreground"
        rows.append((Picture(colours, text), Heat(first.clip(0), i)))
    one, two, three = found.explained
    caption += f" The three hold {one:.0%}, {two:.0%} and {three:.0%} of the foreground's variance."
    notes = ()
    if found.border >= 0.5 * found.inside:
        notes = (
            f"patch features: the first component does not split these images into middle and border "
            f"(foreground: {found.inside:.0%} of the patches inside, {found.border:.0%} at the border): its "
            "split is one of the picture's contents, not of object and background",
        )
    arrays = {"pca": found.colours, "pca.first": found.first}
    return Explanation(
        "Patch features",
        caption,
        (Rows(("three components", "first component"), tuple(rows)),),
        arrays,
        notes,
    )


# no map of importance, so that neither insertion nor a random network judges it
KIND = Kind(name="pca", explain=explain, lacks=lacks, default=True)
