"""MODEL in all its forms: each is loaded, reports what became of its tensors, and works with the verbs."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from PIL import Image

from omma import backbones, weights
from omma.verbs.embed import embed
from omma.verbs.evaluate import evaluate
from omma.weights import hub

timm = pytest.importorskip("timm", reason="timm (dev group) is not installed")


@pytest.fixture
def vit():
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=10).eval()


@pytest.fixture
def folder(tmp_path):
    """Two classes of a few images."""
    rng = np.random.default_rng(0)
    for i in range(24):
        file = tmp_path / "images" / f"class{i % 2}" / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(file)
    return tmp_path / "images"


def headless(network):
    return {name: x for name, x in network.state_dict().items() if not name.startswith("head")}


def timm_feature(network, x):
    with torch.no_grad():
        return network.forward_head(network.forward_features(x), pre_logits=True)


def test_a_file_goes_through_evaluate_and_embed(vit, folder, tmp_path):
    file = tmp_path / "anything.pth"
    torch.save({"model": vit.state_dict(), "epoch": 3}, file)
    model = weights.load(file)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(x).pooled, timm_feature(vit, x), rtol=1e-4, atol=1e-5)
    result = evaluate(file, folder, protocols=["knn"], device="cpu", precision="fp32")
    assert any("100 %" in note for note in result.notes)
    assert any("entry 'model'" in note for note in result.notes)
    written = embed(file, folder, tmp_path / "v.parquet", device="cpu", precision="fp32")
    assert any("head*" in note for note in written.notes)
    table = pq.read_table(tmp_path / "v.parquet")
    assert table.schema.field("vector").type.list_size == 192


def test_saved_as_omma_it_is_the_same(vit, tmp_path):
    torch.save(vit.state_dict(), tmp_path / "a.pt")
    model = weights.load(tmp_path / "a.pt")
    weights.save(tmp_path / "run", model.encoder, model.preprocess)
    again = weights.load(tmp_path / "run")
    assert again.digest == model.digest
    assert weights.load(tmp_path / "run" / "model.safetensors").digest == model.digest


def test_timm_by_name_becomes_an_omma_backbone_if_there_is_one(vit, monkeypatch):
    config = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 0.9}
    monkeypatch.setattr(
        hub, "fetch_timm", lambda name: hub.LibraryWeights(headless(vit), config, "vit_tiny_patch16_224")
    )
    model = weights.load("timm:vit_tiny_patch16_224")
    assert model.encoder.name == "vit-ti/16"
    assert model.preprocess.mean == (0.5,) * 3
    assert model.preprocess.crop_share == 32 / 35  # timm truncates 32 / .9


def test_equal_names_with_other_arithmetic_are_run_by_timm(monkeypatch):
    """A post-norm network with the parameter names of a pre-norm network."""
    network = timm.create_model("vit_base_patch16_rpn_224", num_classes=0).eval()
    for p in network.parameters():  # its norms start near zero, where both compute nearly the same
        p.data.add_(0.1 * torch.rand_like(p))
    pretrained = hub.LibraryWeights(
        network.state_dict(), {"input_size": (3, 224, 224)}, "vit_base_patch16_rpn_224"
    )
    monkeypatch.setattr(hub, "fetch_timm", lambda name: pretrained)
    model = weights.load("timm:vit_base_patch16_rpn_224")
    assert "other features" in model.provenance["loaded"][0]
    x = torch.randn(1, 3, 224, 224)
    torch.testing.assert_close(model(x).pooled, timm_feature(network, x), rtol=1e-3, atol=1e-4)


def test_timm_by_name_is_wrapped_if_there_is_none(monkeypatch):
    network = timm.create_model("test_convnext", num_classes=0).eval()
    config = {"input_size": (3, 64, 64)}
    pretrained = hub.LibraryWeights(network.state_dict(), config, "test_convnext")
    monkeypatch.setattr(hub, "fetch_timm", lambda name: pretrained)
    model = weights.load("timm:test_convnext")
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model(x).pooled, timm_feature(network, x), rtol=1e-4, atol=1e-5)
    assert "timm's own network" in model.provenance["loaded"][0]
    damaged = {name: x[:1] if x.ndim else x for name, x in pretrained.tensors.items()}
    monkeypatch.setattr(hub, "fetch_timm", lambda name: hub.LibraryWeights(damaged, config, "test_convnext"))
    with pytest.raises(ValueError, match="does not fit") as caught:
        weights.load("timm:test_convnext")
    assert "\n" not in str(caught.value)


def test_a_folder_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers (bench group) is not installed")
    config = transformers.ViTConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=2, intermediate_size=96, image_size=32,
        patch_size=8,
    )  # fmt: skip
    theirs = transformers.ViTModel(config, add_pooling_layer=False).eval()
    theirs.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4] * 3, "size": 32})
    )
    for name in (str(tmp_path), f"hf:{tmp_path}"):
        model = weights.load(name)
        assert model.preprocess.mean == (0.1, 0.2, 0.3)
        x = torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            expected = theirs(x).last_hidden_state
            torch.testing.assert_close(model(x).pooled, expected[:, 0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(model(x).patches, expected[:, 1:], rtol=1e-4, atol=1e-5)


def test_a_file_is_read_with_what_lies_beside_it(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers (bench group) is not installed")
    config = transformers.CLIPVisionConfig(
        hidden_size=192, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, image_size=32,
        patch_size=8, hidden_act="gelu",
    )  # fmt: skip
    transformers.CLIPVisionModel(config).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.1, 0.2, 0.3]}))
    folder, file = weights.load(tmp_path), weights.load(tmp_path / "model.safetensors")
    assert file.digest == folder.digest
    assert file.encoder.spec() == folder.encoder.spec()
    assert file.preprocess == folder.preprocess
    assert folder.encoder.blocks[0].attn.heads == 4
    bare = (tmp_path / "model.safetensors").rename(tmp_path / "bare.safetensors")
    assert (
        weights.load(bare).encoder.blocks[0].attn.heads == 3
    )  # a bare file does not use the config.json beside it


def folder_of_timm(network, at, **config):
    at.mkdir()
    safetensors.torch.save_file(network.state_dict(), at / "model.safetensors")
    (at / "config.json").write_text(json.dumps(config))
    return at


def test_folders_of_timm_are_compared_with_timm(tmp_path):
    """Equal names do not guarantee equal arithmetic; networks that omma lacks are run by timm."""
    cfg = {"input_size": [3, 64, 64], "classifier": "head.fc", "mean": [0.5] * 3, "std": [0.5] * 3}
    theirs = timm.create_model("test_convnext", num_classes=5).eval()
    folder = folder_of_timm(theirs, tmp_path / "convnext", architecture="test_convnext", pretrained_cfg=cfg)
    model = weights.load(folder)
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model(x).pooled, timm_feature(theirs, x), rtol=1e-4, atol=1e-5)

    theirs = timm.create_model("resnetblur18", num_classes=5).eval()
    cfg |= {"classifier": "fc"}
    folder = folder_of_timm(theirs, tmp_path / "blur", architecture="resnetblur18", pretrained_cfg=cfg)
    model = weights.load(folder)
    torch.testing.assert_close(model(x).pooled, timm_feature(theirs, x), rtol=1e-4, atol=1e-4)
    other = weights.load(folder_of_timm(theirs, tmp_path / "x", architecture="resnet26", pretrained_cfg=cfg))
    assert any("not compared with timm's own" in line for line in other.provenance["loaded"])
    strange = {"architecture": "resnetblur18", "pretrained_cfg": cfg | {"input_size": 3}}
    with pytest.raises(ValueError, match="malformed") as caught:
        weights.load(folder_of_timm(theirs, tmp_path / "y", **strange))
    assert "\n" not in str(caught.value)


def test_wrapped_networks_take_another_size_and_channels():
    from omma.core.protocols import Preprocess

    preprocess = Preprocess(
        size=64, channels=3, low=(0,) * 3, high=(255,) * 3, mean=(0.5,) * 3, std=(0.5,) * 3
    )
    for name, words in (
        ("timm:test_vit", "positions interpolated 4x4 -> 3x3"),
        ("timm:test_convnext", "first layer converted from 3 to 1 channels"),
        ("torchvision:resnet18", "first layer converted from 3 to 1 channels"),
        ("vitc-15mf", "first layer converted from 3 to 1 channels"),
    ):
        one = backbones.build(name=name, image_size=64)
        other = backbones.build(name=name, image_size=48, channels=1)
        assert words in "\n".join(weights.fit(weights.Model(one, preprocess), other))
        assert torch.isfinite(other.eval()(torch.randn(1, 1, 48, 48)).pooled).all()
    hiera = backbones.build(name="timm:hiera_tiny_224", image_size=224)
    smaller = backbones.build(name="timm:hiera_tiny_224", image_size=128)
    with pytest.raises(ValueError, match="pos_embed has shape"):
        weights.fit(weights.Model(hiera, preprocess), smaller)


def test_three_that_are_refused_each_in_one_line(vit, tmp_path):
    """Damaged, foreign, hostile."""
    damaged, foreign = tmp_path / "damaged.safetensors", tmp_path / "foreign.pth"
    safetensors.torch.save_file(vit.state_dict(), damaged)
    damaged.write_bytes(damaged.read_bytes()[:-1000])
    torch.save({f"transformer.h.{i}.attn.c_attn.weight": torch.zeros(4, 12) for i in range(3)}, foreign)
    trace = tmp_path / "trace"

    class Hostile:
        def __reduce__(self):
            return (open, (str(trace), "w"))

    hostile = tmp_path / "hostile.pth"
    torch.save({"model": vit.state_dict(), "args": Hostile()}, hostile)
    for file, words in (
        (damaged, "damaged"),
        (foreign, "no vision network.*transformer.h.0"),
        (hostile, "would run code: .*open"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            weights.load(file)
        assert "\n" not in str(caught.value)
        assert file.name in str(caught.value)
    assert not trace.exists()


def test_one_of_several_networks_by_name(vit, tmp_path):
    torch.manual_seed(1)
    other = {name: torch.randn_like(x) for name, x in vit.state_dict().items()}
    file = tmp_path / "both.pth"
    torch.save({"teacher": vit.state_dict(), "student": other}, file)
    for name, state in ((file, vit.state_dict()), (f"{file}:student", other)):
        read = weights.load(name).encoder.state_dict()
        assert all(torch.equal(x, state[key]) for key, x in read.items()), name
    with pytest.raises(ValueError, match=r"both\.pth has no entry 'ema'; it has teacher, student"):
        weights.load(f"{file}:ema")
    file.rename(tmp_path / "a:b.pth")
    assert torch.equal(
        weights.load(tmp_path / "a:b.pth").encoder.state_dict()["pos_embed"],
        vit.state_dict()["pos_embed"],
    )
    with pytest.raises(ValueError, match=r"nowhere\.pth:student"):
        weights.load(tmp_path / "nowhere.pth:student")


def test_partial_files(vit, tmp_path):
    state = {n: x for n, x in vit.state_dict().items() if not n.startswith("blocks.3.mlp")}
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"only 9\d\.\d+ %|only 94"):
        weights.load(tmp_path / "a.pth")
    model = weights.load(tmp_path / "a.pth", allow_partial=True)
    assert any("not in the file" in line for line in model.provenance["loaded"])


def test_fit_to_another_size_patch_and_channels():
    torch.manual_seed(0)
    from omma.core.protocols import Preprocess

    one = backbones.build(name="vit-ti/16", image_size=64)
    preprocess = Preprocess(
        size=64, channels=3, low=(0,) * 3, high=(255,) * 3, mean=(0.5,) * 3, std=(0.5,) * 3
    )
    model = weights.Model(one, preprocess)
    other = backbones.build(name="vit-ti/8", image_size=40, channels=1)
    lines = "\n".join(weights.fit(model, other))
    for words in ("4x4 -> 5x5", "16 to 8 px", "from 3 to 1 channels", "100 %"):
        assert words in lines
    assert torch.equal(one.blocks[3].mlp.fc1.weight, other.blocks[3].mlp.fc1.weight)
    with pytest.raises(ValueError, match="vit-s/16"):
        weights.fit(model, backbones.build(name="vit-s/16", image_size=64))
