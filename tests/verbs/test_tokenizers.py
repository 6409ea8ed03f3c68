"""A tokenizer trained on one's own images, and BEiT and EVA that learn from it, by the commands' own way."""

import numpy as np
import pytest
import torch

import omma
from omma.data.sources.collection import ArrayImages
from omma.pretraining.folder import RunFolder
from omma.verbs.pretrain import pretrain

SMALL = {"model": "vit-n/4", "batch_size": 8, "image_size": 16, "device": "cpu", "precision": "fp32"}
LIGHT = {"codes": "16", "decoder_dim": "24", "decoder_heads": "2"}


def pictures(n=64, size=16, channels=3):
    pixels = np.random.default_rng(0).integers(0, 256, (n, size, size, channels), dtype=np.uint8)
    return ArrayImages(pixels, None, ())


@pytest.mark.report
@pytest.mark.parametrize("kind", ["vqvae", pytest.param("dvae", marks=pytest.mark.slow)])
def test_a_tokenizer_and_then_beit(tmp_path, kind):
    pretrain(pictures(), method=kind, out=tmp_path / "tokenizer", steps=3, options=LIGHT, **SMALL)
    tokenizer = omma.load(tmp_path / "tokenizer")
    assert tokenizer.extras.tensors["codes.weight"].shape == (16, 192)
    assert tokenizer.extras.facts["codes"] == 16
    assert "Reconstructions" in (tmp_path / "tokenizer" / "report.html").read_text()

    out = tmp_path / "beit"
    pretrain(
        pictures(), method="beit", out=out, steps=3,
        options={"tokenizer": str(tmp_path / "tokenizer")}, **SMALL,
    )  # fmt: skip
    lines = [line for line in RunFolder(out).metrics() if line["event"] == "step"]
    assert all(np.isfinite(line["loss"]) for line in lines)
    assert 0 <= lines[-1]["accuracy"] <= 1
    assert RunFolder(out).config()["learns_from"] == tokenizer.digest
    assert not omma.load(out).extras.tensors


def test_eva_learns_from_any_model_and_resumes(tmp_path):
    pretrain(pictures(), method="mae", out=tmp_path / "target", steps=2, **SMALL)
    options = {"target": str(tmp_path / "target")}
    pretrain(pictures(), method="eva", out=tmp_path / "straight", steps=4, options=options, **SMALL)

    def stop(event):
        if getattr(event, "step", 0) == 2 and hasattr(event, "loss"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(
            pictures(), method="eva", out=tmp_path / "halves", steps=4, options=options,
            checkpoint_every=1e-9, listen=stop, **SMALL,
        )  # fmt: skip
    pretrain(pictures(), method="eva", out=tmp_path / "halves", steps=4, options=options, **SMALL)
    one, other = (omma.load(tmp_path / name).encoder.state_dict() for name in ("straight", "halves"))
    assert all(torch.equal(x, other[name]) for name, x in one.items())


def test_a_model_without_codes_and_one_of_other_channels_are_refused(tmp_path):
    pretrain(pictures(), method="mae", out=tmp_path / "mae", steps=1, **SMALL)
    with pytest.raises(ValueError, match="not what beit learns from, a tokenizer"):
        pretrain(
            pictures(), method="beit", out=tmp_path / "run", steps=1,
            options={"tokenizer": str(tmp_path / "mae")}, **SMALL,
        )  # fmt: skip
    with pytest.raises(ValueError, match="made for 3 channels, these images have 1"):
        pretrain(
            pictures(channels=1), method="eva", out=tmp_path / "run", steps=1,
            options={"target": str(tmp_path / "mae")}, **SMALL,
        )  # fmt: skip
