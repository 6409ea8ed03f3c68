"""DALL-E's published tokenizer: its code's numbers, by any of the files it comes in, and as BEiT's target."""

import sys
import types

import pytest
import torch
from torch import nn
from waves import wave

import omma
from omma import backbones, weights
from omma.backbones.dalle import Dalle


def official(hidden: int = 64, codes: int = 512) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published code's Encoder(n_hid=hidden, n_blk_per_group=1, vocab_size=codes)."""
    shapes: dict[str, tuple[int, ...]] = {"blocks.input": (hidden, 3, 7, 7)}
    width = hidden
    for g in range(4):
        out = hidden * 2**g
        block, inner = f"blocks.group_{g + 1}.block_1", out // 4
        if width != out:
            shapes[f"{block}.id_path"] = (out, width, 1, 1)
        for i, shape in enumerate(
            ((inner, width, 3, 3), (inner, inner, 3, 3), (inner, inner, 3, 3), (out, inner, 1, 1)), start=1
        ):
            shapes[f"{block}.res_path.conv_{i}"] = shape
        width = out
    shapes["blocks.output.conv"] = (codes, width, 1, 1)
    return {
        f"{name}.{p}": shape if p == "w" else shape[:1] for name, shape in shapes.items() for p in ("w", "b")
    }


def state(**sizes: int) -> dict[str, torch.Tensor]:
    tensors = {}
    for i, (name, shape) in enumerate(official(**sizes).items()):
        scale = 0.5 if len(shape) == 1 else 1.5 / (shape[1] * shape[2] * shape[3]) ** 0.5
        tensors[name] = wave(*shape, phase=i, scale=scale).float()
    return tensors


def nested(tensors: dict[str, torch.Tensor], kind: type) -> nn.Module:
    """A module whose parameters have these names."""
    root = kind()
    for name, x in tensors.items():
        *path, last = name.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Sequential())
            module = module._modules[part]
            assert module is not None
        module.register_parameter(last, nn.Parameter(x))
    return root


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch) -> type:
    """A class that pickles write as the published one."""
    module = types.ModuleType("dall_e.encoder")
    monkeypatch.setitem(sys.modules, "dall_e", types.ModuleType("dall_e"))
    monkeypatch.setitem(sys.modules, "dall_e.encoder", module)
    kind = type("Encoder", (nn.Module,), {"__module__": "dall_e.encoder"})
    module.Encoder = kind  # pyright: ignore[reportAttributeAccessIssue]
    return kind


def test_logits_of_the_published_code(tmp_path):
    """openai/DALL-E 5be4b23, Encoder(n_hid=64, n_blk_per_group=1, vocab_size=512)(map_pixels(x))."""
    torch.save(state(), tmp_path / "encoder.pth")
    model = omma.load(tmp_path / "encoder.pth")
    x = (wave(1, 3, 16, 24, step=0.31) + 1).float() / 2
    with torch.inference_mode():
        features = model(model.preprocess.normalise(x))
    extras = model.extras.tensors
    logits = features.patches @ extras["codes.weight"].T + extras["codes.bias"]
    assert features.grid == (2, 3)
    first = torch.tensor([-2.83477, -0.206666, -0.168432, 1.389222, -0.492738, -0.189065])
    last = torch.tensor([-0.555997, 0.00059, -1.176962, -0.374409, 1.794855])
    torch.testing.assert_close(logits[0, 0, :6], first, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(logits[0, 5, -5:], last, atol=2e-5, rtol=1e-5)
    assert logits.argmax(-1)[0].tolist() == [329, 329, 329, 502, 329, 502]


def test_the_published_file_is_a_whole_module(tmp_path, theirs):
    """Nothing of it is run: it is read as a table of tensors."""
    torch.save(nested(state(), theirs), tmp_path / "encoder.pkl")
    sys.modules.pop("dall_e.encoder")
    model = omma.load(tmp_path / "encoder.pkl")
    assert model.encoder.spec() == {
        "name": "dalle/8", "image_size": 112, "channels": 3, "hidden": 64, "depth": 1
    }  # fmt: skip
    torch.save(state(), tmp_path / "state.pth")
    other = omma.load(tmp_path / "state.pth")
    assert model.digest == other.digest
    assert torch.equal(model.extras.tensors["codes.weight"], other.extras.tensors["codes.weight"])
    assert model.extras.facts == {"codes": 512}
    assert any("layer of codes" in line for line in model.provenance["loaded"])


def test_other_whole_modules_are_still_refused(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "linear.pt")
    with pytest.raises(ValueError, match=r"would run code: torch\.nn\.modules\.linear"):
        omma.load(tmp_path / "linear.pt")


def test_it_goes_through_a_run_folder_with_its_codes(tmp_path):
    torch.save(state(), tmp_path / "encoder.pth")
    model = omma.load(tmp_path / "encoder.pth")
    weights.save(tmp_path / "kept", model.encoder, model.preprocess, extras=model.extras)
    again = omma.load(tmp_path / "kept")
    assert again.digest == model.digest
    assert torch.equal(again.extras.tensors["codes.bias"], model.extras.tensors["codes.bias"])


def test_its_size_is_the_published_encoders():
    """Without the layer of codes, 2048 x 8192 + 8192 numbers: 53.8 million are in encoder.pkl."""
    network = backbones.outline(name="dalle/8", image_size=112)
    assert isinstance(network, Dalle)
    assert (network.dim, network.patch, network.grid(112, 112)) == (2048, 8, (14, 14))
    shapes = official(256, 8192)
    blocks = {n: s for n, s in shapes.items() if "group" in n}
    ones = sum(torch.Size(s).numel() for s in shapes.values()) - 2048 * 8192 - 8192
    second = 0  # each group's second block has the width of its end, and no projection
    for g in range(4):
        out, inner = 256 * 2**g, 64 * 2**g
        second += inner * out * 9 + 2 * inner * inner * 9 + out * inner + 3 * inner + out
    assert blocks
    assert sum(p.numel() for p in network.parameters()) == ones + second


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dalle/16", {}, "choose dalle/8"),
        ("dalle/8", {"hidden": 66}, "multiple of 4"),
    ],
)
def test_what_does_not_exist_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        backbones.build(name=name, image_size=16, **options)
