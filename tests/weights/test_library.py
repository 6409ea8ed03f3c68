"""Files of timm's and torchvision's networks, named by the caller: `--as timm:NAME`."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

import omma
from omma.cli import main
from omma.weights import library, misfit

timm = pytest.importorskip("timm", reason="timm (dev group) is not installed")
models = pytest.importorskip("torchvision.models", reason="torchvision (dev group) is not installed")


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=7).eval()


def logits(model, x):
    tensors = model.extras.tensors
    with torch.no_grad():
        return model(x).pooled @ tensors["classifier.weight"].T + tensors["classifier.bias"]


def same_logits(model, network, size):
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(logits(model, x), network(x), rtol=1e-3, atol=1e-4)


def refused(*arguments, **options):
    with pytest.raises(ValueError) as caught:
        omma.load(*arguments, **options)
    line = str(caught.value)
    assert "\n" not in line
    return line


WRAPPED = {
    "plain": lambda state: state,
    "DataParallel": lambda state: {"state_dict": {f"module.{n}": x for n, x in state.items()}},
    "a larger model": lambda state: {"model": {f"net.backbone.{n}": x for n, x in state.items()}},
    "EMA beside it": lambda state: {
        "state_dict": {n: x * 0 for n, x in state.items()},
        "state_dict_ema": state,
    },
    "without counters": lambda state: {n: x for n, x in state.items() if "num_batches" not in n},
    "half precision": lambda state: {n: x.half() if x.is_floating_point() else x for n, x in state.items()},
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_a_bare_file_fills_the_network_and_keeps_its_classifier(tmp_path, network, kind):
    torch.save(WRAPPED[kind](network.state_dict()), tmp_path / "w.pth")
    model = omma.load(tmp_path / "w.pth", architecture="timm:test_resnet")
    tolerance = 0.02 if kind == "half precision" else 1e-4
    x = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        torch.testing.assert_close(logits(model, x), network(x), rtol=tolerance, atol=tolerance)
    said = " ".join(model.provenance["loaded"])
    assert "timm's for test_resnet are assumed, mean (0.5, 0.5, 0.5)" in said
    assert model.preprocess.mean == (0.5, 0.5, 0.5)  # timm's own for this network, not ImageNet's
    assert ("prefix" in said) == (kind in ("DataParallel", "a larger model"))


def test_settings_in_the_files_folder_are_used(tmp_path, network):
    safetensors.torch.save_file(network.state_dict(), tmp_path / "w.safetensors")
    names = [f"kind {i}" for i in range(7)]
    config = {"pretrained_cfg": {"mean": [0.4] * 3, "std": [0.2] * 3}, "label_names": names}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for path in (tmp_path / "w.safetensors", tmp_path):
        model = omma.load(path, architecture="timm:test_resnet")
        assert model.preprocess.mean == (0.4,) * 3
        assert model.extras.facts["classes"] == names
        assert "assumed" not in " ".join(model.provenance["loaded"])


def test_a_folder_whose_config_names_the_network_alone(tmp_path, network):
    torch.save(network.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text('{"architecture": "test_resnet"}')
    model = omma.load(tmp_path)
    same_logits(model, network, 160)
    assert model.preprocess.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "densenet121",
        pytest.param("mobilenet_v2", marks=pytest.mark.slow),  # as the next
        "shufflenet_v2_x0_5",
        "vit_b_32",
    ],
)
def test_torchvision(tmp_path, name):
    torch.manual_seed(0)
    network = models.get_model(name, weights=None, num_classes=5).eval()
    if name == "vit_b_32":
        network.heads.head.weight.data.normal_(std=0.02)  # zeros at first
    torch.save(network.state_dict(), tmp_path / "w.pth")
    model = omma.load(tmp_path / "w.pth", architecture=f"torchvision:{name}")
    assert len(logits(model, torch.zeros(1, 3, 64, 64))[0]) == 5
    same_logits(model, network, 224 if name == "vit_b_32" else 64)
    assert "torchvision's for" in " ".join(model.provenance["loaded"])
    assert model.encoder.name == {"vit_b_32": "vit-b/32", "resnet18": "timm:resnet18"}.get(
        name, f"torchvision:{name}"
    )


def test_networks_that_convert_their_input_themselves(tmp_path):
    network = models.googlenet(weights=None, init_weights=False)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    model = omma.load(tmp_path / "w.pth", architecture="torchvision:googlenet")
    assert model.preprocess.mean == model.preprocess.std == (0.5, 0.5, 0.5)


@pytest.mark.slow
def test_two_branches_with_a_classifier_each(tmp_path):
    network = timm.create_model("crossvit_tiny_240", num_classes=3).eval()
    torch.save(network.state_dict(), tmp_path / "w.pth")
    model = omma.load(tmp_path / "w.pth", architecture="timm:crossvit_tiny_240")
    same_logits(model, network, 240)
    assert model(torch.randn(1, 3, 240, 240)).grid == (1, 1)


def test_names_of_another_implementation_in_the_same_order(tmp_path, network):
    state = network.state_dict()
    theirs = {f"_layer{i}.{name.rpartition('.')[2]}": x for i, (name, x) in enumerate(state.items())}
    torch.save(theirs, tmp_path / "w.pth")
    model = omma.load(tmp_path / "w.pth", architecture="timm:test_resnet")
    same_logits(model, network, 160)
    assert "another implementation's" in " ".join(model.provenance["loaded"])
    first = next(iter(theirs))
    swapped = {n: x for n, x in theirs.items() if n != first} | {first: theirs[first]}
    torch.save(swapped, tmp_path / "w.pth")  # the same tensors in another order
    assert "does not fit timm:test_resnet" in refused(tmp_path / "w.pth", architecture="timm:test_resnet")


def test_what_does_not_fit_is_named_with_what_does(tmp_path, network, monkeypatch):
    monkeypatch.setattr(misfit, "CANDIDATES", 3)  # each of them takes a tenth of a second
    torch.save(network.state_dict(), tmp_path / "test_resnet.pth")
    line = refused(tmp_path / "test_resnet.pth")
    assert "it fits timm:test_resnet: name the right one, --as timm:test_resnet" in line
    line = refused(tmp_path / "test_resnet.pth", architecture="timm:test_byobnet")
    assert "does not fit timm:test_byobnet: it lacks" in line
    assert line.endswith("it fits timm:test_resnet")
    wrong = {n: x[:-1] if n == "layer4.0.conv1.weight" else x for n, x in network.state_dict().items()}
    torch.save(wrong, tmp_path / "w.pth")
    assert "layer4.0.conv1.weight has shape" in refused(tmp_path / "w.pth", architecture="timm:test_resnet")
    damaged = {n: x * float("nan") for n, x in network.state_dict().items() if x.is_floating_point()}
    torch.save(damaged, tmp_path / "w.pth")
    assert "not finite" in refused(tmp_path / "w.pth", architecture="timm:test_resnet")


def test_names_that_are_none(tmp_path, network):
    torch.save(network.state_dict(), tmp_path / "w.pth")
    file = tmp_path / "w.pth"
    assert "timm has no test_resnot; there is test_resnet" in refused(file, architecture="timm:test_resnot")
    assert "torchvision has no resnet19; there is resnet1" in refused(
        file, architecture="torchvision:resnet19"
    )
    assert "write timm:NAME or torchvision:NAME" in refused(file, architecture="resnet18")
    assert "leave out what follows the point" in refused(file, architecture="timm:test_resnet.nobody")
    assert "does not exist" in refused(tmp_path / "no.pth", architecture="timm:test_resnet")
    encoder = omma.backbones.build(name="vit-ti/16", image_size=32, depth=1)
    preprocess = omma.load(file, architecture="timm:test_resnet").preprocess
    omma.weights.save(tmp_path / "run", encoder, omma.weights.Model(encoder, preprocess).preprocess)
    assert "leave out --as" in refused(tmp_path / "run", architecture="timm:test_resnet")


def test_every_verb_takes_it(tmp_path, network, capsys):
    torch.save(network.state_dict(), tmp_path / "w.pth")
    rng = np.random.default_rng(0)
    for i in range(24):
        file = tmp_path / "images" / f"class{i % 2}" / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(file)
    file, images, name = str(tmp_path / "w.pth"), str(tmp_path / "images"), "timm:test_resnet"
    out = tmp_path / "run"
    for words in (
        ["embed", file, images, "--out", str(tmp_path / "v.csv"), "--as", name],
        ["evaluate", file, images, "--as", name, "--protocol", "knn", "--no-floors"],
        ["predict", file, images, "--out", str(tmp_path / "p.csv"), "--threshold", "0", "--as", name],
        ["export", file, "--format", "safetensors", "--out", str(tmp_path / "e"), "--images", images,
         "--as", name],
        ["pretrain", images, "--init", file, "--as", name, "--method", "simclr", "--steps", "1",
         "--batch-size", "4", "--image-size", "32", "--out", str(out), "--workers", "0"],
    ):  # fmt: skip
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert not ended.value.code, capsys.readouterr()
    assert omma.load(out).encoder.name == name
    with pytest.raises(SystemExit, match="2"):
        main(["pretrain", images, "--as", name])
    assert "give --init too" in capsys.readouterr().err


def test_positions_of_another_size_and_a_prefix_of_torchvisions_names(tmp_path):
    vit = models.VisionTransformer(
        image_size=64, patch_size=16, num_layers=12, num_heads=12, hidden_dim=768, mlp_dim=24, num_classes=3
    )
    state = {f"module.{n}": x for n, x in vit.state_dict().items()}
    unpacked = library.unpack("torchvision:vit_b_16", state, {}, "w.pth")
    assert unpacked.image_size == 64
    assert unpacked.config["input_size"] == (3, 64, 64)
    assert {"blocks.3.attn.qkv.bias", "patch_embed.proj.weight", "norm.bias"} <= unpacked.tensors.keys()
    assert unpacked.heads.keys() == {"head.weight", "head.bias"}
