"""LoRA in peft's files: peft computes the same from them, and omma reads peft's."""

import json

import pytest
import safetensors.torch
import torch

from omma import backbones
from omma.backbones import adapters
from omma.backbones.adapters import lora
from omma.core.protocols import Preprocess
from omma.weights import Model, peft_format

SPEC = {"name": "vit-ti/16", "image_size": 32, "depth": 2}


def base(**options: object) -> Model:
    torch.manual_seed(0)
    thirds = {
        name: (value,) * 3 for name, value in (("low", 0.0), ("high", 255.0), ("mean", 0.5), ("std", 0.5))
    }
    return Model(backbones.build(**SPEC | options), Preprocess(size=32, channels=3, **thirds))


def adapted(**options: object) -> backbones.Backbone:
    encoder = base().encoder
    adapters.insert(encoder, "lora", options)
    torch.manual_seed(1)
    for layer in lora.layers(encoder).values():
        torch.nn.init.normal_(layer.lora_B.weight, std=0.1)
    return encoder.eval()


X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_what_is_saved_is_read_back(tmp_path):
    encoder = adapted(rank=3, alpha=5.0, targets="qkv,fc2")
    peft_format.save(tmp_path / "adapter", encoder, "vit")
    model = peft_format.adapted(base(), tmp_path / "adapter")
    assert torch.equal(model(X).pooled, encoder(X).pooled)
    assert not torch.allclose(model(X).pooled, base()(X).pooled, atol=1e-3)
    assert backbones.build(**model.encoder.spec()).state_dict().keys() == model.encoder.state_dict().keys()


def test_an_encoder_without_lora_has_no_files(tmp_path):
    assert peft_format.save(tmp_path / "adapter", base().encoder) == []
    assert not (tmp_path / "adapter").exists()


@pytest.mark.slow  # imports peft and transformers
def test_peft_reads_the_files_for_timms_network(tmp_path):
    peft, timm = pytest.importorskip("peft"), pytest.importorskip("timm")
    encoder = adapted()
    peft_format.save(tmp_path, encoder)
    network = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=0)
    network.load_state_dict(base().encoder.state_dict())
    theirs = peft.PeftModel.from_pretrained(network, tmp_path).eval()
    torch.testing.assert_close(theirs(X), encoder(X).pooled, atol=1e-5, rtol=1e-5)
    merged = adapters.merged(encoder)
    torch.testing.assert_close(theirs.merge_and_unload()(X), merged(X).pooled, atol=1e-5, rtol=1e-5)


@pytest.mark.slow  # imports peft and transformers
def test_gradients_of_both_factors_are_pefts(tmp_path):
    peft, timm = pytest.importorskip("peft"), pytest.importorskip("timm")
    encoder = adapted().train()
    peft_format.save(tmp_path, encoder)
    network = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=0)
    network.load_state_dict(base().encoder.state_dict())
    theirs = peft.PeftModel.from_pretrained(network, tmp_path, is_trainable=True)
    weights = torch.linspace(-1, 1, 2 * 192).view(2, 192)
    (theirs(X) * weights).sum().backward()
    (encoder(X).pooled * weights).sum().backward()
    grads = {
        n.replace(".default", "").removeprefix(peft_format.PREFIX): p.grad
        for n, p in theirs.named_parameters()
    }
    compared = [n for n, p in encoder.named_parameters() if p.requires_grad]
    assert len(compared) == 2 * 2 * 4
    for name in compared:
        own = encoder.get_parameter(name).grad
        assert (own - grads[name]).abs().max() <= 1e-5 * grads[name].abs().max(), name


@pytest.mark.slow  # imports peft and transformers
def test_omma_reads_what_peft_wrote(tmp_path):
    peft, timm = pytest.importorskip("peft"), pytest.importorskip("timm")
    network = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=0)
    network.load_state_dict(base().encoder.state_dict())
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=["attn.proj"], init_lora_weights=False)
    theirs = peft.get_peft_model(network, config).eval()
    theirs.save_pretrained(tmp_path)
    model = peft_format.adapted(base(), tmp_path)
    torch.testing.assert_close(model(X).pooled, theirs(X), atol=1e-5, rtol=1e-5)
    assert list(lora.layers(model.encoder)) == ["blocks.0.attn.proj", "blocks.1.attn.proj"]


def _changed(folder, **changes):
    file = folder / peft_format.CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "the adapter is 'IA3', and only LORA can be read"),
        ({"use_dora": True}, "use_dora=True cannot be read: merge the adapter with peft"),
        ({"alpha_pattern": {"qkv": 3}}, "alpha_pattern=.* cannot be read"),
        ({"lora_alpha": None}, r"is no config of peft's"),
        ({"r": 5}, r"lora_A.weight is \(8, 192\), vit-ti/16 has \(5, 192\): give the model"),
    ],
)
def test_other_adapters_are_refused(tmp_path, changes, message):
    peft_format.save(tmp_path, adapted())
    _changed(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        peft_format.adapted(base(), tmp_path)


def test_missing_and_damaged_files_and_another_base_are_refused(tmp_path):
    peft_format.save(tmp_path, adapted())
    with pytest.raises(ValueError, match=r"--adapt.targets blocks.1.attn.proj: vit-ti/16 has no such layer"):
        peft_format.adapted(base(depth=1), tmp_path)
    safetensors.torch.save_file({"x": torch.zeros(1)}, tmp_path / peft_format.TENSORS)
    with pytest.raises(ValueError, match="holds no LoRA"):
        peft_format.adapted(base(), tmp_path)
    (tmp_path / peft_format.TENSORS).write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="cannot be read"):
        peft_format.adapted(base(), tmp_path)
    (tmp_path / peft_format.CONFIG).unlink()
    with pytest.raises(ValueError, match=r"adapter_config\.json"):
        peft_format.adapted(base(), tmp_path)
