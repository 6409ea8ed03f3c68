"""`--label-depth` reaches the verbs, and evaluate and embed say how folders were read."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from omma import backbones, weights
from omma.core.protocols import Preprocess
from omma.verbs.embed import embed
from omma.verbs.evaluate import evaluate

CPU = {"device": "cpu", "precision": "fp32"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.manual_seed(5)
    scaled = Preprocess(
        size=16, channels=3, low=(0.0,) * 3, high=(255.0,) * 3, mean=(0.5,) * 3, std=(0.25,) * 3
    )
    folder = tmp_path_factory.mktemp("runs") / "x"
    weights.save(folder, backbones.build(name="vit-ti/16", image_size=16), scaled, {"method": "mae"})
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes, each with a part to train and to test on, in two groups."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name in [
        f"{group}/{kind}/{part}" for group in "AB" for kind in ("x", "y") for part in ("train", "test")
    ]:
        (root / name).mkdir(parents=True)
        for k in range(2 if name.endswith("test") else 6):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(root / name / f"{k}.png")
    return root


def test_parts_are_no_classes_and_depths_are_told(run, folder):
    outcome = evaluate(run, folder, protocols=["knn"], floors=False, cache=None, **CPU)
    assert {(score.n_train, score.n_test) for score in outcome.results} == {(24, 8)}
    assert any(note.startswith("4 folders are 2 classes") for note in outcome.notes)
    deeper = evaluate(run, folder, protocols=["knn"], label_depth="path", floors=False, cache=None, **CPU)
    assert {(score.n_train, score.n_test) for score in deeper.results} == {(24, 8)}
    assert not any("classes, since" in note for note in deeper.notes)


def test_embedded_labels(run, folder, tmp_path):
    written = embed(run, folder, tmp_path / "a.parquet", label_depth=1, **CPU)
    assert set(pq.read_table(written.path)["label"].to_pylist()) == {"A", "B"}
    written = embed(run, folder, tmp_path / "b.parquet", **CPU)
    assert any(note.startswith("4 folders are 2 classes") for note in written.notes)
