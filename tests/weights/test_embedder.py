"""`omma.Embedder` is an estimator by scikit-learn's own checks, and its features are the model's."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator

import omma
from omma import backbones, weights
from omma.core.protocols import Preprocess

PREPROCESS = Preprocess(
    size=8, channels=3, low=(0.0,) * 3, high=(255.0,) * 3, mean=(0.5,) * 3, std=(0.25,) * 3, crop_share=1.0
)
PIXELS = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("model")
    weights.save(out, backbones.build(name="vit-n/4", image_size=8, depth=1), PREPROCESS)
    return out


def test_scikit_learns_own_checks(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of rows that are no squares, of checks that are skipped
        results = check_estimator(omma.Embedder(str(folder), batch=8), on_fail=None)
    status = {each["check_name"]: each["status"] for each in results}
    assert len(status) > 35
    assert {name for name, value in status.items() if value != "passed"} <= {"check_array_api_input"}


def test_features_are_those_of_the_model(folder, tmp_path):
    expected = weights.load(folder).embed(PIXELS)
    Image.fromarray(PIXELS[0]).save(tmp_path / "a.png")
    embedder = omma.Embedder(folder, batch=20).fit(PIXELS)
    assert np.allclose(embedder.transform(PIXELS), expected, atol=1e-5)
    assert np.allclose(embedder.transform([tmp_path / "a.png"]), expected[:1], atol=1e-5)
    assert np.allclose(embedder.transform(np.array([[str(tmp_path / "a.png")]])), expected[:1], atol=1e-5)
    rows = PIXELS.reshape(20, -1)  # holds 0 and 255
    flat = omma.Embedder(folder).fit(rows)
    assert flat.shape_ == (8, 8, 3)
    assert np.allclose(flat.transform(rows[:5] / 1.0), expected[:5], atol=1e-5)
    assert list(flat.get_feature_names_out())[:2] == ["embedder0", "embedder1"]


def test_alone_as_among_others(folder):
    embedder = omma.Embedder(folder, batch=8).fit(PIXELS)
    alone = np.concatenate([embedder.transform(PIXELS[i : i + 1]) for i in range(20)])
    assert np.allclose(alone, embedder.transform(PIXELS), rtol=1e-6, atol=1e-7)


def test_in_a_pipeline(folder):
    pipeline = make_pipeline(omma.Embedder(folder), LogisticRegression())
    labels = np.arange(20) % 2
    pixels = np.where(labels[:, None, None, None] > 0, PIXELS // 2 + 127, PIXELS // 2).astype(np.uint8)
    assert pipeline.fit(pixels, labels).score(pixels, labels) == 1.0


def test_refused_in_a_line(folder):
    with pytest.raises(ValueError, match="model=None: give a run folder"):
        omma.Embedder().fit(PIXELS)
    with pytest.raises(ValueError, match="rows of 192 values do not fit"):
        omma.Embedder(folder, shape=(8, 8)).fit(PIXELS.reshape(20, -1))
    with pytest.raises(ValueError, match="fit on one, too"):
        omma.Embedder(folder).fit(PIXELS).transform(PIXELS.reshape(20, -1))
    with pytest.warns(UserWarning, match="no square"):
        omma.Embedder(folder).fit(PIXELS.reshape(20, -1)[:, :10])
