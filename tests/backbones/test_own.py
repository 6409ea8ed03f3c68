"""Networks of the user's own by name: built again wherever a run or a model needs them."""

import copy
import json
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import omma
from omma import backbones
from omma.core import own
from omma.ops.batch_norm import BatchNorm
from omma.verbs.pretrain import plan

FILE = """
import torch
from torch import nn
import omma


@omma.network
def build(channels, width=4):
    return nn.Sequential(nn.Conv2d(channels, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU())


@omma.network
class Quarters(nn.Module):  # four tokens behind a class token; whether it trains reaches `forward`
    def __init__(self, image_size, drop_path=0.0):
        super().__init__()
        self.embed = nn.Conv2d(3, 6, image_size // 2, image_size // 2)
        self.first = nn.Parameter(torch.ones(1, 1, 6))
        self.drop_path = drop_path

    def forward(self, images):
        patches = self.embed(images).flatten(2).transpose(1, 2)
        return torch.cat([self.first.expand(len(images), -1, -1), patches], 1) * (2 if self.training else 1)


@omma.network
def number():
    return 3


def unmarked():
    return nn.Conv2d(3, 4, 2)
"""


@pytest.fixture
def networks(tmp_path, monkeypatch):
    """The module `own_networks` in the working folder, as for a command."""
    (tmp_path / "own_networks.py").write_text(FILE)
    (tmp_path / "needy.py").write_text("import no_such_library\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    yield "own_networks"
    for name in ("own_networks", "needy"):
        sys.modules.pop(name, None)


def test_it_is_built_by_name_with_what_the_function_takes(networks):
    network = backbones.build(name="own_networks:build", image_size=16, channels=2, arguments='{"width": 8}')
    assert (network.dim, network.patch, network.channels) == (8, 2, 2)
    assert set(network.state_dict()) == set(network.module.state_dict())  # type: ignore[attr-defined]
    assert type(network.get_submodule("1")) is BatchNorm  # statistics over all processes
    spec = json.loads(json.dumps(network.spec()))
    again = backbones.unfilled(**spec)
    again.load_state_dict(network.state_dict())
    x = torch.randn(2, 2, 16, 16)
    torch.testing.assert_close(again.eval()(x).pooled, network.eval()(x).pooled, rtol=0, atol=0)
    assert backbones.outline(**spec)(x.to("meta")).patches.shape == (2, 64, 8)
    assert backbones.traits("own_networks:build").patch is None


def test_a_class_with_a_token_of_its_own(networks):
    network = backbones.build(name="own_networks:Quarters", image_size=16, prefix=1, drop_path=0.25)
    assert network.module.drop_path == 0.25  # type: ignore[attr-defined]
    assert (network.grid(16, 16), network.prefix) == ((2, 2), 1)
    x = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(network.train()(x).pooled, 2 * network.eval()(x).pooled)


def test_a_copy_has_weights_of_its_own(networks):
    network = backbones.build(name="own_networks:build", image_size=16)
    twin = copy.deepcopy(network)
    x, before = torch.randn(2, 3, 16, 16), network.eval()(torch.ones(1, 3, 16, 16)).pooled
    for p in twin.parameters():
        p.data.zero_()
    torch.testing.assert_close(network(torch.ones(1, 3, 16, 16)).pooled, before)
    assert not twin.eval()(x).pooled.any()


def test_its_description_changes_with_its_file(networks, tmp_path):
    """So that features of other code are not taken for its own."""
    before = backbones.build(name="own_networks:build", image_size=16).described()
    sys.modules.pop(networks)
    (tmp_path / "own_networks.py").write_text(
        FILE.replace("nn.ReLU()", "nn.ReLU(inplace=True)") + "# longer\n"
    )
    after = backbones.build(name="own_networks:build", image_size=16).described()
    assert before["source"] != after["source"]
    assert before["name"] == after["name"]


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"name": "own_networks:biuld"}, "the module own_networks has no biuld"),
        ({"name": "no_networks.here:build"}, "no module no_networks .* add that folder to PYTHONPATH"),
        ({"name": "own_networks:unmarked"}, "not marked .* write @omma.network above it"),
        ({"name": "shutil:rmtree", "arguments": '{"path": "x"}'}, "shutil.rmtree is not marked"),
        ({"name": "own_networks:number"}, "returns a int: it must return a torch.nn.Module"),
        ({"name": "own_networks:build", "arguments": '{"depth": 2}'}, "unexpected keyword argument 'depth'"),
        ({"name": "own_networks:build", "arguments": "width=2"}, "no JSON"),
        ({"name": "own_networks:build", "arguments": "[2]"}, "a JSON object is expected"),
        ({"name": "own_networks:build", "width": 2}, "has no option 'width'; it has arguments, "),
        ({"name": "own_networks:build", "prefix": 1}, r"gives a map; only tokens \[b, n, d\] have one"),
    ],
)
def test_what_cannot_be_built_is_refused_in_a_line(networks, spec, reason):
    with pytest.raises(ValueError, match=reason) as error:
        backbones.build(**{"image_size": 16, **spec})
    assert "\n" not in str(error.value)


def test_what_a_module_lacks_itself_is_not_hidden(networks):
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        own.find("needy:build")


def test_functions_that_nobody_could_import_are_not_marked():
    def local():
        return nn.Conv2d(3, 4, 2)

    with pytest.raises(ValueError, match="local cannot be imported by name: write it at the top of a file"):
        omma.network(local)
    local.__module__, local.__qualname__ = "__main__", "local"
    with pytest.raises(ValueError, match="cannot be imported by name"):
        omma.network(local)


@pytest.mark.parametrize(
    ("model", "what"),
    [
        (nn.Conv2d(3, 4, 2), "a Conv2d"),
        (nn.Conv2d, "the class Conv2d"),
        (nn.functional.relu, "the function relu"),
    ],
)
def test_what_is_no_marked_function_is_refused(model, what):
    with pytest.raises(
        ValueError, match=f"^model is {what}: give a name .* marked by @omma.network"
    ) as error:
        omma.pretrain("photos", model=model)
    assert "\n" not in str(error.value)


def test_a_run_of_it_is_resumed_judged_and_read_without_omma(networks, tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (24, 16, 16, 3), dtype=np.uint8)
    build = own.find("own_networks:build")
    options = {"method": "simclr", "image_size": 16, "batch_size": 8, "device": "cpu", "workers": 0}
    result = omma.pretrain(images, model=build, steps=2, out=tmp_path / "run", **options)
    omma.pretrain(images, model="own_networks:build", steps=4, extend=True, out=tmp_path / "run", **options)
    assert result.steps == 2
    weights = load_file(tmp_path / "run" / "model.safetensors")
    assert weights.keys() == build(3).state_dict().keys()
    module = build(3)
    module.load_state_dict(weights)
    model = omma.load(tmp_path / "run")
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(model.encoder(x).pooled, module.eval()(x).mean((2, 3)))
    np.savez(tmp_path / "labelled.npz", images=images, labels=np.arange(24) % 2)
    judged = omma.evaluate(model, tmp_path / "labelled.npz", protocol="knn")
    assert {score.subject for score in judged.results} >= {"pixels", "untrained", "trained"}


def test_the_default_folder_of_a_run_has_no_colon(networks, monkeypatch, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (16, 16, 16, 3), dtype=np.uint8)
    planned = plan(images, method="simclr", model="own_networks:build", steps=1, batch_size=8, device="cpu")
    assert planned.choice.model == "own_networks:build"
    assert planned.out.name.endswith("-simclr-own_networks-build")
