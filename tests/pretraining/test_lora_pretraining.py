"""`omma pretrain --init WEIGHTS --adapt lora`: any method adapts trained weights without labels."""

import numpy as np
import pytest
import torch

import omma
from omma import weights
from omma.core.protocols import Preprocess
from omma.data.sources.collection import ArrayImages
from omma.pretraining.folder import RunFolder
from omma.train import checkpoint
from omma.verbs.pretrain import pretrain

RANK = 2
LITTLE = {"batch_size": 8, "image_size": 16, "device": "cpu", "precision": "fp32", "lr": 0.01}
OPTIONS = {
    "simclr": {"hidden": 16, "out": 8},
    "dino": {"prototypes": 32, "head_hidden": 16, "head_bottleneck": 8},
    "ibot": {"prototypes": 32, "head_hidden": 16, "head_bottleneck": 8},
    "dinov2": {"prototypes": 32, "head_hidden": 16, "head_bottleneck": 8},
    "mae": {"decoder_dim": 24, "decoder_heads": 2, "decoder_depth": 1},
    "moco": {"hidden": 16, "out": 8},
    "distil": {"period": 1},
}


def pictures(n=48):
    pixels = np.random.default_rng(0).integers(0, 256, (n, 16, 16, 3), dtype=np.uint8)
    return ArrayImages(pixels, None, ())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small trained ViT, by its run folder."""
    folder = tmp_path_factory.mktemp("trained")
    torch.manual_seed(0)
    encoder = omma.backbones.build(
        name="vit-n/4", image_size=16, depth=2, pool="mean", dim=48, heads=3, hidden=192
    )
    half = (0.5,) * 3
    preprocess = Preprocess(size=16, channels=3, low=(0.0,) * 3, high=(255.0,) * 3, mean=half, std=half)
    weights.save(folder, encoder, preprocess)
    return folder


def adapted(images, init, out, method, **options):
    own = {name: str(value) for name, value in OPTIONS[method].items()}
    if method == "distil":
        own["teacher"] = str(init)
    return pretrain(
        images, init=init, out=out, method=method, adapt="lora", adapt_options={"rank": RANK}, options=own,
        **{**LITTLE, **options},
    )  # fmt: skip


@pytest.mark.parametrize("method", OPTIONS)
def test_only_low_rank_updates_of_the_weights_are_exported(tmp_path, trained, method):
    result = adapted(pictures(), trained, tmp_path / "run", method, steps=3)
    before, after = omma.load(trained).encoder, omma.load(tmp_path / "run").encoder
    assert after.adapter is None  # merged: any tool reads it
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()  # and peft the update
    assert after.spec() == before.spec()
    changed = []
    for name, x in before.state_dict().items():
        difference = after.state_dict()[name] - x
        if difference.any():
            changed.append(name.rpartition("blocks.")[2].partition(".")[2])
            assert torch.linalg.matrix_rank(difference, atol=1e-6) <= RANK
    assert set(changed) == {"attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight"}
    assert RunFolder(tmp_path / "run").config()["adapt"]["kind"] == "lora"
    assert "of the nearest neighbours are those of the start" in str(result.verdict)  # what was retained


def test_the_optimizer_holds_adapters_and_heads_alone(tmp_path, trained):
    adapted(pictures(), trained, tmp_path / "run", "simclr", steps=2)
    saved, _ = checkpoint.newest(RunFolder(tmp_path / "run").checkpoints)
    moved = sum(x["exp_avg"].numel() for x in saved.optimizer["state"].values())
    names = [name for name in saved.method if "lora_" in name or name.startswith("head.")]
    learned = [n for n in names if "running" not in n and "num_batches" not in n]
    assert moved == sum(saved.method[name].numel() for name in learned)
    adapters = sum(saved.method[name].numel() for name in names if "lora_" in name)
    assert adapters == 2 * 16 * RANK * 48  # 16 r d a block


def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, trained):
    """With a teacher that is the average of an adapted network."""
    adapted(pictures(), trained, tmp_path / "straight", "dino", steps=4)

    def stop(event):
        if getattr(event, "step", 0) == 2 and hasattr(event, "loss"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adapted(pictures(), trained, tmp_path / "halves", "dino", steps=4, checkpoint_every=1e-9, listen=stop)
    adapted(pictures(), trained, tmp_path / "halves", "dino", steps=4)
    one, other = (omma.load(tmp_path / name).encoder.state_dict() for name in ("straight", "halves"))
    assert all(torch.equal(x, other[name]) for name, x in one.items())
