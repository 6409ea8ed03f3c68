"""`omma finetune --adapt transfg`: the whole network learns, and the report shows what was chosen."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import omma
from omma import backbones
from omma.adaptation.request import WHOLE
from omma.backbones import adapters
from omma.backbones.adapters.transfg import Parts
from omma.core.protocols import Preprocess
from omma.verbs.finetune import finetune
from omma.weights import store

SPEC = {"name": "vit-n/4", "image_size": 16, "depth": 2, "dim": 24, "heads": 2, "hidden": 48}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A network's folder, and images of two classes."""
    root = tmp_path_factory.mktemp("transfg")
    torch.manual_seed(0)
    values = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "low": (0.0,) * 3, "high": (255.0,) * 3}
    store.save(root / "model", backbones.build(**SPEC), Preprocess(size=16, channels=3, **values))
    rng = np.random.default_rng(0)
    for number, name in enumerate(("dark", "light")):
        (root / "images" / name).mkdir(parents=True)
        for i in range(10):
            pixels = rng.integers(100 * number, 100 * number + 100, (16, 16, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(root / "images" / name / f"{i}.png")
    return root


def tuned(sources, out, **options):
    return finetune(
        sources / "model", sources / "images", out=out, adapt="transfg", batch_size=8, device="cpu",
        precision="fp32", workers=0, **{"steps": 2, **options},
    )  # fmt: skip


@pytest.mark.report
def test_the_result_is_a_classifier_whose_report_shows_parts(sources, tmp_path):
    tuned(sources, tmp_path / "run", adapt_options={"stride": "2"})
    encoder = omma.load(tmp_path / "run").encoder
    assert isinstance(encoder, Parts)
    assert encoder.stride == 2
    before = omma.load(sources / "model").encoder
    moved = {
        n
        for (n, p), q in zip(before.named_parameters(), encoder.parameters())
        if n != "pos_embed" and (p != q).any()
    }
    assert {"patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "norm.weight"} <= moved
    report = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "Chosen parts</h2>" in report
    assert "2 heads" in report
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(line["contrast"] > 0 for line in lines if line["event"] == "step")


def test_mixed_images_are_refused_where_classes_are_compared(sources, tmp_path):
    with pytest.raises(
        ValueError, match=r"contrast=1: compares classes, and mixed images.*--method\.mixup 0"
    ):
        tuned(sources, tmp_path / "run", options={"mixup": "0.8"})
    tuned(sources, tmp_path / "run", steps=1, options={"mixup": "0.8", "contrast": "0"})
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert not any("contrast" in line for line in lines)


def test_adapters_that_train_the_whole_network_are_treated_like_it():
    assert set(WHOLE) - {"full"} == {kind for kind in adapters.kinds() if not adapters.freezes(kind)}
