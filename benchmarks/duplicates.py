"""Duplicates against known copies: hash, features and both; imagededup's hashes; many images.

    python benchmarks/duplicates.py made PHOTOS MODEL [--seeds 0 1 2] [--cache FOLDER]
    python benchmarks/duplicates.py pairs UKBENCH PHOTOS MODEL [--cache FOLDER]
    python benchmarks/duplicates.py many [--images 127000]

made: the photographs are halved at random for each seed. Thresholds are set on one half alone. Of 100 images
of the other half ten copies each are made (JPEG 10, grey, crops of 10 to 50 %, mirrored, turned, resized);
recall is the share of (image, copy) found, false positives those among all pairs of different images of that
half, copies with other images included. Intervals: Wilson, 95 %.
pairs: the ukbench pictures of imagededup's tests, at thresholds from PHOTOS, beside imagededup's hashes
at its default of 10 bits. Truth: pictures of one scene are duplicates, mirrored, resized and turned ones too.
many: time and memory for hashes and vectors drawn at random.
"""

import argparse
import resource
import time
from pathlib import Path

import numpy as np

from omma import weights
from omma.core.device import pick_device, pick_precision
from omma.curation.duplicates import copies, find, hashes, rule
from omma.data.sources.collection import ArrayImages, open_images
from omma.data.sources.indexed import IndexedImages
from omma.features.extract import FeatureSet
from omma.ops.nearest import pairs_above, unit
from omma.weights.cached_features import cached_features

COPIED = 100  # images of which copies are made
RATE = 1e-5


def interval(found: int, n: int) -> str:
    """A share with its 95 % interval [Wilson 1927]."""
    z, share = 1.96, found / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return f"{share:.4f} [{middle - half:.4f}, {middle + half:.4f}] ({found:,} of {n:,})"


class Embedder:
    """A model's features of collections and of arrays, kept in a folder."""

    def __init__(self, name: str, cache: Path | None) -> None:
        self.model, self.name, self.cache = weights.load(name), Path(name).stem, cache

    def photos(self, images: IndexedImages) -> FeatureSet:
        device = pick_device()
        return cached_features(self.model, images, device, pick_precision("fp32", device))

    def arrays(self, pixels: list[np.ndarray], key: str) -> np.ndarray:
        """One unit vector an array; key: what names them."""
        file = None if self.cache is None else self.cache / f"{self.name}-{key}.npy"
        if file is not None and file.exists():
            return np.load(file)
        vectors = unit(self.model.embed(pixels))
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, vectors)
        return vectors


# ---------------------------------------------------------------- made
def made(photos: Path, model: str, seeds: list[int], cache: Path | None) -> None:
    images = open_images(photos)
    embedder = Embedder(model, cache)
    vectors = unit(embedder.photos(images).vectors)
    found = hashes.hashes(images)
    kinds: dict[str, list[bool]] = {}
    totals = {name: [0, 0, 0, 0] for name in ("hash", "features", "either", "with pixels")}
    for seed in seeds:
        order = np.random.default_rng([11, seed]).permutation(len(images))
        ours, theirs = np.sort(order[: len(images) // 2]), np.sort(order[len(images) // 2 :])
        pictures = rule.Pictures(images)
        some = rule.sample(found, ours, vectors, seed)
        decides, pairs, aside = rule.chosen(some, pictures, RATE, len(ours), seed)
        print(f"seed {seed}: {decides}, from {pairs:,} pairs, {aside} images set aside", flush=True)
        copied = list(copies.made(images.subset(theirs), COPIED, seed))
        seen = embedder.arrays([each.pixels for each in copied], f"made-{seed}")
        prints = hashes.perceptual_hashes(np.stack([hashes.picture(each.pixels) for each in copied]))
        small = np.stack([rule.small(each.pixels) for each in copied])
        of = theirs[[each.of for each in copied]]
        # rows: the other half, then the copies; truth: the photograph that each shows
        source = np.concatenate([theirs, of])
        both = np.concatenate([found.perceptual[theirs], prints])
        known = np.concatenate([vectors[theirs], seen])
        shown = np.concatenate([pictures(theirs), small])
        originals = np.searchsorted(theirs, of)
        rows = np.arange(len(theirs), len(source))
        hits = verdicts(decides, both, known, shown, originals, rows)
        for each, hit in zip(copied, hits["with pixels"]):
            kinds.setdefault(each.kind, []).append(bool(hit))
        different = np.array(list(differing(source)))
        false = verdicts(decides, both, known, shown, *different.T)
        for name, total in totals.items():
            here = hits[name].sum(), len(of), false[name].sum(), len(different)
            totals[name] = [a + int(b) for a, b in zip(total, here)]
    for name, (hit, n, wrong, others) in totals.items():
        print(f"{name}: recall {interval(hit, n)}, false positives {interval(wrong, others)}")
    for kind, values in kinds.items():
        print(f"  {kind}: {interval(sum(values), len(values))}")


def differing(source: np.ndarray):
    """Pairs of rows that show different photographs."""
    for i in range(len(source)):
        yield from ((i, j) for j in np.flatnonzero(source[i + 1 :] != source[i]) + i + 1)


def verdicts(decides, prints, vectors, shown, a, b) -> dict[str, np.ndarray]:
    """What each detector says of pairs: hash, features, either, and the rule as a whole."""
    distance = hashes.distances(prints[a], prints[b])
    cosine = np.concatenate(
        [(vectors[a[k : k + 50_000]] * vectors[b[k : k + 50_000]]).sum(1) for k in range(0, len(a), 50_000)]
    )
    whole, _ = rule.judged(decides, distance, cosine, lambda at: (shown[a[at]], shown[b[at]]))
    near, alike = distance <= decides.hash_limit, cosine >= decides.threshold
    return {"hash": near, "features": alike, "either": near | alike, "with pixels": whole}


# ---------------------------------------------------------------- pairs
def pairs(pictures: Path, photos: Path, model: str, cache: Path | None) -> None:
    embedder, elsewhere = Embedder(model, cache), open_images(photos)
    thresholds = find(elsewhere, vectors=embedder.photos(elsewhere), copies=0, false_positives=RATE).rule
    print(thresholds)
    images = open_images(pictures)
    vectors = embedder.photos(images)
    readable = [int(i) for i in vectors.indices]
    scene = {i: Path(images.path(i)).name.split(".")[0].split("_")[0] for i in readable}
    scene |= {i: "ukbench00120" for i in readable if images.path(i).startswith("alpha")}
    truth = {(a, b) for a in readable for b in readable if a < b and scene[a] == scene[b]}
    for name, given in (("omma", vectors), ("omma without a model", None)):
        result = find(images, vectors=given, copies=0, thresholds=thresholds)
        report(name, spread(result), truth)
        print("  cannot be read:", ", ".join(images.path(i) for i, _ in result.bad))
    rows = unit(vectors.vectors)
    alike = {
        (readable[i], readable[j])
        for block in pairs_above(rows, thresholds.threshold)
        for i, j in zip(*block[:2])
    }
    report("features alone", alike, truth)
    try:
        from imagededup import methods
    except ImportError:
        print("imagededup is not installed")
        return
    for kind in ("PHash", "DHash", "WHash", "AHash"):
        hasher = getattr(methods, kind)(verbose=False)
        encoded = {i: hasher.encode_image(image_array=images.read(i)) for i in readable}
        near = {
            (a, b)
            for a in readable
            for b in readable
            if a < b and bin(int(encoded[a], 16) ^ int(encoded[b], 16)).count("1") <= 10
        }
        report(f"imagededup {kind} (10 bits)", near, truth)


def spread(found) -> set[tuple[int, int]]:
    """All pairs, those of images with the same bytes or pixels written out."""
    of: dict[int, set[int]] = {}
    for pair in found.pairs:
        if pair.kind != "near":
            whole = of.get(pair.a, {pair.a}) | of.get(pair.b, {pair.b})
            of |= dict.fromkeys(whole, whole)
    whole = {(min(a, b), max(a, b)) for rows in of.values() for a in rows for b in rows if a != b}
    for pair in found.pairs:
        for a in of.get(pair.a, {pair.a}):
            whole |= {(min(a, b), max(a, b)) for b in of.get(pair.b, {pair.b}) if a != b}
    return whole


def report(name: str, said: set[tuple[int, int]], truth: set[tuple[int, int]]) -> None:
    right = len(said & truth)
    print(f"{name}: precision {right}/{len(said)}, recall {right}/{len(truth)}", flush=True)


# ---------------------------------------------------------------- many
def many(n: int, dim: int = 384) -> None:
    rng = np.random.default_rng(0)
    prints = rng.integers(0, 2**63, (n, hashes.ORIENTATIONS), dtype=np.uint64)
    prints[n - 1000 :] = prints[:1000]
    list(hashes.near_pairs(prints[:10], 8))  # compiles
    start = time.perf_counter()
    near = sum(len(i) for i, _, _ in hashes.near_pairs(prints, 8))
    seconds = time.perf_counter() - start
    print(f"{n:,} hashes in {hashes.ORIENTATIONS} orientations: {seconds:.1f} s, {near} pairs")
    vectors = unit(rng.standard_normal((n, dim), np.float32))
    start = time.perf_counter()
    alike = sum(len(i) for i, _, _ in pairs_above(vectors, 0.8))
    print(f"{n:,} vectors of {dim}: {time.perf_counter() - start:.1f} s, {alike} pairs")
    pixels = ArrayImages(rng.integers(0, 256, (400, 32, 32, 3), dtype=np.uint8))
    shown = rule.Pictures(pixels)(np.arange(400))
    start = time.perf_counter()
    rule.align.agreement(shown, shown[::-1].copy())
    print(f"pixels of a pair: {(time.perf_counter() - start) / 400 * 1e3:.1f} ms")
    print(f"memory at most: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GB")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, sources in (("made", ("photos",)), ("pairs", ("pictures", "photos")), ("many", ())):
        command = commands.add_parser(name)
        for source in sources:
            command.add_argument(source, type=Path)
        if sources:
            command.add_argument("model")
            command.add_argument("--cache", type=Path)
    commands.choices["made"].add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    commands.choices["many"].add_argument("--images", type=int, default=127_000)
    given = parser.parse_args()
    if given.command == "made":
        made(given.photos, given.model, given.seeds, given.cache)
    elif given.command == "pairs":
        pairs(given.pictures, given.photos, given.model, given.cache)
    else:
        many(given.images)


if __name__ == "__main__":
    main()
