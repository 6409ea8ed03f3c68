"""Does the answer rest on what a map shows? Insertion and deletion of pixels [Petsiuk 2018, 1806.07421]."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from omma.inspection.kinds import Curves, Explanation, Figures, Judged, Kind, Subject
from omma.inspection.maps import enlarged

STEPS = 28  # in which all pixels change
DRAWS = 3  # of random maps
BOOTSTRAP = 2_000
Test = Literal["insertion", "deletion"]
RANDOM, CENTRE = "random map", "centre"


class Curve(NamedTuple):
    """The score of each image as pixels change, from none to all."""

    scores: Float[np.ndarray, "n steps"]

    @property
    def area(self) -> Float[np.ndarray, "n"]:
        """The mean over the path (trapezoids); between 0 and 1 for probabilities."""
        return (self.scores[:, 1:] + self.scores[:, :-1]).mean(1) / 2


def order(maps: Float[np.ndarray, "n h w"], seed: int = 0) -> Int[np.ndarray, "n hw"]:
    """Pixels from the one that matters most to the least; equal ones in random order."""
    flat = maps.reshape(len(maps), -1)
    chance = np.random.default_rng(seed).random(flat.shape)
    return np.lexsort((chance, -flat), axis=1)


def blurred(images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Without detail: a Gaussian of 1/20 of the side, reflected at the borders.

    [Petsiuk 2018] start insertion from a blurred image, whose edges add no evidence, and end deletion in
    the mean colour.
    """
    sigma = max(min(images.shape[-2:]) / 20, 0.5)
    reach = min(int(3 * sigma) + 1, min(images.shape[-2:]) - 1)
    x = torch.arange(-reach, reach + 1, device=images.device, dtype=torch.float32)
    kernel = torch.exp(-(x**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).to(images.dtype)
    c = images.shape[1]
    padded = F.pad(images, (reach,) * 4, mode="reflect")
    rows = F.conv2d(padded, kernel.view(1, 1, -1, 1).repeat(c, 1, 1, 1), groups=c)
    return F.conv2d(rows, kernel.view(1, 1, 1, -1).repeat(c, 1, 1, 1), groups=c)


@torch.no_grad()
def curve(subject: Subject, maps: Float[np.ndarray, "n h w"], test: Test, steps: int = STEPS) -> Curve:
    """Scores as pixels change in the order of the maps, 1/steps of them at a time.

    Deletion: the image's pixels become the data's mean. Insertion: a blurred image's become the image's.
    """
    places = order(enlarged(maps, subject.size), subject.seed)
    count = places.shape[1]
    ends = np.linspace(0, count, steps + 1).round().astype(int)
    rows = []
    for i, image in enumerate(subject.pixels):
        whole = image[None]
        start, end = (whole, torch.zeros_like(whole)) if test == "deletion" else (blurred(whole), whole)
        rank = np.empty(count, np.int64)
        rank[places[i]] = np.arange(count)
        when = torch.from_numpy(rank.reshape(subject.size)).to(image.device)
        found = []
        for part in np.array_split(ends, -(-len(ends) // subject.batch)):
            changed = when < torch.from_numpy(part).to(image.device)[:, None, None]
            mixed = torch.where(changed[:, None], end, start)
            which = torch.full((len(part),), i, device=image.device)
            found.append(subject.target.share(subject.encoder(mixed), which).double().cpu())
        rows.append(torch.cat(found).numpy())
    return Curve(np.stack(rows))


def random_maps(n: int, grid: tuple[int, int], seed: int) -> Float[np.ndarray, "n gh gw"]:
    """Uniform noise, of the resolution of a kind's maps."""
    return np.random.default_rng(seed).random((n, *grid))


def centred(n: int, size: tuple[int, int]) -> Float[np.ndarray, "n h w"]:
    """A Gaussian in the middle, a quarter of the side wide: photographers put things there."""
    y, x = (np.linspace(-1, 1, side) for side in size)
    return np.broadcast_to(np.exp(-(y[:, None] ** 2 + x**2) / (2 * 0.5**2)), (n, *size))


def areas(kinds: Sequence[Kind], subject: Subject) -> dict[Test, dict[str, Float[np.ndarray, "n"]]]:
    """Of both tests: the area of each kind, of random maps as coarse as the kind's, and of the centre's."""
    n = len(subject.pixels)
    found: dict[Test, dict[str, np.ndarray]] = {"insertion": {}, "deletion": {}}
    chance: dict[tuple[Test, tuple[int, int]], np.ndarray] = {}
    for done, kind in enumerate(kinds):
        assert kind.one_map is not None, "the caller has chosen kinds with maps"
        maps = np.nan_to_num(kind.one_map(subject))
        grid = (maps.shape[1], maps.shape[2])
        for test, own in found.items():
            own[kind.name] = curve(subject, maps, test).area
            if (test, grid) not in chance:
                draws = [random_maps(n, grid, subject.seed + draw) for draw in range(DRAWS)]
                chance[test, grid] = np.mean([curve(subject, each, test).area for each in draws], axis=0)
            own[f"{kind.name}: {RANDOM}"] = chance[test, grid]
        subject.progress("insertion and deletion", done + 1, len(kinds))
    for test, own in found.items():
        own[CENTRE] = curve(subject, centred(n, subject.size), test).area
    return found


def interval(differences: Float[np.ndarray, "n"], seed: int = 0) -> tuple[float, float, float]:
    """Mean, and its 95 % interval by a bootstrap over images; NaN for fewer than 5 of them."""
    mean = float(differences.mean())
    if len(differences) < 5:
        return mean, float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    draws = differences[rng.integers(len(differences), size=(BOOTSTRAP, len(differences)))].mean(1)
    low, high = np.percentile(draws, (2.5, 97.5))
    return mean, float(low), float(high)


def test(kinds: Sequence[Kind], subject: Subject) -> tuple[Explanation, dict[str, str]]:
    """The section of the page, and a sentence for each kind."""
    found, seed = areas(kinds, subject), subject.seed
    judged, rows, sentences = [], [], {}
    for kind in kinds:
        beyond = {
            (name, other): interval(sign * (own[kind.name] - own[reference]), seed)
            for name, sign, own in (("insertion", 1, found["insertion"]), ("deletion", -1, found["deletion"]))
            for other, reference in ((RANDOM, f"{kind.name}: {RANDOM}"), (CENTRE, CENTRE))
        }
        sentences[kind.name], good = _verdict(beyond)
        judged.append(Judged(f"{kind.name}: insertion and deletion", sentences[kind.name], good))
        rows += [_row(kind.name, name, found[name], beyond) for name in found]
    caption = (
        "Pixels change in the order of a map. Insertion: they appear in a blurred image, and the score "
        "should rise soon, so a larger area is better. Deletion: they vanish in the data's mean colour, and "
        "the score should fall soon, so a smaller area is better [Petsiuk 2018]. Beside it, random maps of "
        "the same resolution, and a blob in the middle of the image. In brackets: 95 % interval of the mean "
        f"difference over {len(subject.pixels)} images, positive where the map is better."
    )
    heads = ("area", "map", "random", "centre", "better than random by", "better than the centre by")
    arrays = {f"{name}.{key}": values for name, own in found.items() for key, values in own.items()}
    shows: tuple[Figures | Curves, ...] = (Figures(heads, tuple(rows)),)
    return Explanation("Insertion and deletion", caption, shows, arrays, judged=tuple(judged)), sentences


def _verdict(beyond: Mapping[tuple[str, str], tuple[float, float, float]]) -> tuple[str, bool | None]:
    """A sentence, and whether both tests show the map to be better than chance."""
    chance = [beyond[name, RANDOM] for name in ("insertion", "deletion")]
    centre = [beyond[name, CENTRE] for name in ("insertion", "deletion")]
    if np.isnan(chance[0][1]):
        return "Too few images for an interval of insertion and deletion: give at least 5.", None
    if not all(low > 0 for _, low, _ in chance):
        failed = " and ".join(
            name for name, (_, low, _) in zip(("insertion", "deletion"), chance) if not low > 0
        )
        return f"By {failed} the maps are not shown to be better than random ones.", False
    more = (
        "and than a blob in the middle"
        if all(low > 0 for _, low, _ in centre)
        else "but not shown to be better than a blob in the middle"
    )
    return f"Insertion and deletion: better than random maps, {more}.", True


def _row(
    kind: str,
    test: Test,
    own: Mapping[str, np.ndarray],
    beyond: Mapping[tuple[str, str], tuple[float, float, float]],
) -> tuple[str, ...]:
    def difference(other: str) -> str:
        mean, low, high = beyond[test, other]
        return f"{mean:+.3f}" + ("" if np.isnan(low) else f" [{low:+.3f}, {high:+.3f}]")

    values = (own[kind], own[f"{kind}: {RANDOM}"], own[CENTRE])
    return (f"{kind}, {test}", *(f"{x.mean():.3f}" for x in values), difference(RANDOM), difference(CENTRE))
