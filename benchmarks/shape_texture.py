"""The cue-conflict test of a model beside the published figures, and what the way of deciding changes.

    python benchmarks/shape_texture.py MODEL PICTURES [--labelled PHOTOS] [--json FILE]

PICTURES is a table with path, shape and texture, such as the 1,200 with a conflict of the paper's 1,280
(github.com/rgeirhos/texture-vs-shape, CC BY 4.0; shape and texture stand in the files' names). Beside the
average over the fine classes of a category, their sum and their maximum decide, and the pictures through the
model's centre crop instead of whole.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from omma import weights
from omma.data.sources.collection import open_images
from omma.evaluation.job import Job
from omma.inspection import cue_conflict, shape_texture, sixteen
from omma.inspection.shape_texture import PUBLISHED, SOURCE
from omma.weights import answers


def share(conflicts: cue_conflict.Conflicts, scores: np.ndarray, names: list[str]) -> str:
    """Shape share and its interval of the categories' largest scores."""
    number = np.array([conflicts.classes.index(name) if name in conflicts.classes else -1 for name in names])
    found = shape_texture.counted(
        conflicts, number[scores.argmax(1)], "trained", "classifier", len(names)
    )  # fmt: skip
    low, high = found.interval95 or (np.nan, np.nan)
    decided = found.shape + found.texture
    return (
        f"{found.share:.4f} ({low:.3f} to {high:.3f}), {found.shape} of {decided}, either {found.either:.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("pictures")
    parser.add_argument("--labelled")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    model, name = weights.named(given.model)
    cpu, images = torch.device("cpu"), open_images(given.pictures)
    job = Job(
        model=model, images=images, source=given.pictures, device=cpu, precision=torch.float32, cache=None,
        seed=0, floors=True, progress=None, text_reader=None,
    )  # fmt: skip
    found = shape_texture.judge(job, name, None if given.labelled is None else open_images(given.labelled))
    for row in found.table()[1]:
        print("  ".join(f"{cell:28}" for cell in row))
    print(found.verdict(), *found.notes, sep="\n")
    print("published:", ", ".join(f"{who} {value:.4f}" for who, value in PUBLISHED.items()), f"({SOURCE})")
    if given.json is not None:
        given.json.write_text(json.dumps(found.to_json(), indent=1))
    classifier = model.classifier
    if classifier is None or (groups := sixteen.groups(classifier.classes)) is None:
        return
    numbers, conflicts = groups[0], cue_conflict.read(images, given.pictures)
    for what, seen in (("whole pictures", shape_texture.whole(model)), ("centre crop", model)):
        logits = answers.logits(seen, conflicts.images, cpu, torch.float32)
        p, part = (
            classifier.probabilities(torch.from_numpy(logits.vectors)).numpy(),
            conflicts.subset(logits.indices),
        )
        mean = sixteen.averaged(p, numbers)
        sizes = np.array([len(own) for own in numbers.values()])
        largest = np.stack([p[:, own].max(1) for own in numbers.values()], 1)
        for how, scores in (("average", mean), ("sum", mean * sizes), ("maximum", largest)):
            print(f"{what}, {how}: {share(part, scores, list(numbers))}")


if __name__ == "__main__":
    main()
