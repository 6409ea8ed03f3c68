"""Adapters in whole runs: what is learned ends in the model that the run saves."""

import numpy as np
import pytest
import torch

import omma
from omma.data.sources.collection import ArrayImages
from omma.verbs.finetune import finetune
from omma.verbs.pretrain import pretrain
from omma.weights import peft_format

SMALL = {"batch_size": 16, "image_size": 16, "device": "cpu", "steps": 6}
# No held-out images: the last step's weights are kept, whichever reading rounding would call best.
TUNE = {**SMALL, "holdout": 0}


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    pixels, kind = rng.integers(0, 120, (64, 16, 16, 3), dtype=np.uint8), np.arange(64) % 2
    pixels[kind == 0, :, :8] += 120
    pixels[kind == 1, :, 8:] += 120
    return ArrayImages(pixels, kind, ("left", "right"))


@pytest.fixture(scope="module")
def base(pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    pretrain(pictures, out=folder / "run", method="simclr", model="vit-n/4", **SMALL)
    return folder / "run"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_lora_is_merged_and_lies_beside_in_pefts_files(pictures, base, tmp_path, precision):
    finetune(base, pictures, adapt="lora", out=tmp_path, precision=precision, **TUNE)
    merged, frozen = omma.load(tmp_path), omma.load(base)
    assert merged.encoder.spec() == frozen.encoder.spec()
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    pooled = merged(x).pooled
    assert not torch.allclose(pooled, frozen(x).pooled, atol=1e-4)
    rebuilt = peft_format.adapted(frozen, tmp_path / "adapter")
    torch.testing.assert_close(rebuilt(x).pooled, pooled, atol=1e-5, rtol=1e-5)


def test_prompts_and_bottlenecks_are_loaded_with_the_model(pictures, base, tmp_path):
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    frozen = omma.load(base)
    for kind in ("vpt", "adapter"):
        finetune(base, pictures, adapt=kind, out=tmp_path / kind, **TUNE)
        model = omma.load(tmp_path / kind)
        assert model.encoder.adapter == kind
        assert not (tmp_path / kind / "adapter").exists()
        state = model.encoder.state_dict()
        for name, p in frozen.encoder.state_dict().items():
            assert torch.equal(p, state[name])
        assert not torch.allclose(model(x).pooled, frozen(x).pooled, atol=1e-4)
