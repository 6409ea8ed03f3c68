"""Maximising images of a classifier's classes: how many are found, and are they surer than real images?

    python benchmarks/class_images.py MODEL [--classes 10] [--steps 128] [--seed 0] [--photos LABELLED]
        [--out FILE.png] [--json FILE]

MODEL has a classifier, such as one of ImageNet. Classes are drawn by the seed. A class is found when the
picture, rounded to the levels of the model's images and passed through its own preprocessing, has a
probability above .9. --photos: labelled images whose classes' names contain those of the model's classes, or
the other way round; the largest probability that any of a class's photos has stands beside. Written is one
row of pictures.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from PIL import Image

from omma import weights
from omma.data.sources.collection import open_images
from omma.inspection.class_images import SURE, Ascent, of_classes

AT_A_TIME = 5  # pictures that are learned together


def surest(model: weights.Model, labelled: str, names: list[str]) -> dict[str, float]:
    """For each class that has photos, the largest probability of it that any of them has."""
    images, classifier = open_images(labelled), model.classifier
    assert classifier is not None
    assert images.labels is not None, "photos need labels"
    found: dict[str, float] = {}
    for name in names:
        like = [k for k, own in enumerate(images.classes) if own in name or name in own]
        rows = np.flatnonzero(np.isin(images.labels, like))
        if len(rows):
            p = model.classify(images.subset(rows)).probabilities
            found[name] = float(p[:, classifier.classes.index(name)].max())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--steps", type=int, default=Ascent().steps)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--photos")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    model, name = weights.named(given.model)
    if model.classifier is None:
        parser.error(f"{name} has no classifier")
    every = model.classifier.classes
    drawn = np.random.default_rng(given.seed).choice(
        len(every), min(given.classes, len(every)), replace=False
    )
    names, made, start = [every[k] for k in drawn], [], time.perf_counter()
    for i in range(0, len(names), AT_A_TIME):
        made += of_classes(model, names[i : i + AT_A_TIME], Ascent(steps=given.steps), given.seed)
    seconds = time.perf_counter() - start
    real = {} if given.photos is None else surest(model, given.photos, names)
    for each in made:
        beside = f"  surest photo {real[each.name]:.3f}" if each.name in real else ""
        print(
            f"{each.name:40} p {each.probability:.4f}  logit {each.value:6.2f}  first: {each.first}{beside}"
        )
    found = sum(each.found for each in made)
    print(
        f"found (p > {SURE}): {found} of {len(made)}, {given.steps} steps, {seconds:.0f} s, seed {given.seed}"
    )
    if given.out is not None:
        Image.fromarray(np.concatenate([each.picture for each in made], 1)).save(given.out)
    if given.json is not None:
        rows = [{"class": e.name, "probability": e.probability, "photos": real.get(e.name)} for e in made]
        facts = {"model": name, "steps": given.steps, "seed": given.seed, "seconds": seconds, "found": found}
        given.json.write_text(json.dumps({**facts, "classes": rows}, indent=1))


if __name__ == "__main__":
    main()
