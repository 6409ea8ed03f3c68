"""Published CLIP with its text tower: transformers' classes and OpenAI's layout, both with random values."""

import json

import numpy as np
import pytest
import torch
from published_files import SMALL, randomised

from omma import weights
from omma.backbones.layers import text
from omma.data import text_tokenizer

transformers = pytest.importorskip("transformers", reason="transformers (dev group) is not installed")

MERGES = np.array([(k, 256 + k) for k in range(85)])  # 85 merges, for 599 tokens
TEXT = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96,
    "vocab_size": 599, "eos_token_id": 598, "bos_token_id": 597, "max_position_embeddings": 20,
}  # fmt: skip


def clip(act="quick_gelu", **changes):
    config = transformers.CLIPConfig(
        vision_config=SMALL | {"hidden_act": act},
        text_config=TEXT | {"hidden_act": act} | changes,
        projection_dim=32,
    )
    return randomised(transformers.CLIPModel(config))


def tokens(b=3):
    rows = torch.randint(0, 590, (b, 20), generator=torch.Generator().manual_seed(1))
    for row, end in zip(rows, (19, 7, 3)):
        row[end] = 598
        row[end + 1 :] = 0
    return rows


@torch.no_grad()
def vectors(network, tokens):
    """Texts in the shared space, from whichever version of transformers."""
    pooled = network.text_model(tokens).pooler_output
    return network.text_projection(pooled)


@pytest.mark.parametrize(
    ("act", "end"),
    [("quick_gelu", 598), ("gelu", 598), ("quick_gelu", 2)],
    ids=["quick", "gelu", "2 for the last"],
)
def test_text_tower_of_transformers(tmp_path, act, end):
    network = clip(act, eos_token_id=end)
    network.save_pretrained(tmp_path)
    model = weights.load(tmp_path)
    paired = text.restored(model.extras, "it", MERGES)
    assert (paired.tower(tokens()) - vectors(network, tokens())).abs().max() < 1e-5
    assert torch.equal(model.extras.tensors["projection.weight"], network.visual_projection.weight)
    assert torch.equal(model.extras.tensors["logit_scale"], network.logit_scale)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        wanted = network.visual_projection(network.vision_model(images).pooler_output)
        ours = model(images).pooled @ model.extras.tensors["projection.weight"].T
    assert (ours - wanted).abs().max() < 1e-5
    lines = "\n".join(model.provenance["loaded"])
    assert "text tower (2 x 64, 2 heads" in lines
    assert "text_projection" not in lines.partition("not used")[2].partition("\n")[0]


def openai(network, prefix=""):
    """The same tensors in the layout of OpenAI's and open_clip's files."""
    found = {}
    state = network.state_dict()
    rules = {"vision_model.": "visual.", "text_model.": ""}
    for name, x in state.items():
        for old, new in rules.items():
            if not name.startswith(old):
                continue
            part = name.removeprefix(old)
            if ".q_proj." in part:
                kind = part.rsplit(".", 1)[1]
                stem = name.replace(f"q_proj.{kind}", "")
                x = torch.cat([state[f"{stem}{p}_proj.{kind}"] for p in "qkv"])
                part = part.replace("self_attn.q_proj.", "attn.in_proj_")
            elif ".k_proj." in part or ".v_proj." in part or "position_ids" in part:
                continue
            for a, b in (
                ("embeddings.class_embedding", "class_embedding"),
                ("embeddings.patch_embedding", "conv1"),
                ("embeddings.position_embedding.weight", "positional_embedding"),
                ("embeddings.token_embedding", "token_embedding"),
                ("pre_layrnorm", "ln_pre"),
                ("post_layernorm", "ln_post"),
                ("final_layer_norm", "ln_final"),
                ("encoder.layers", "transformer.resblocks"),
                ("layer_norm", "ln_"),
                ("self_attn.out_proj", "attn.out_proj"),
                ("mlp.fc1", "mlp.c_fc"),
                ("mlp.fc2", "mlp.c_proj"),
            ):
                part = part.replace(a, b)
            found[prefix + new + part] = x
    found[prefix + "visual.proj"] = state["visual_projection.weight"].T
    found[prefix + "text_projection"] = state["text_projection.weight"].T
    found[prefix + "logit_scale"] = state["logit_scale"]
    return {name: x.clone() for name, x in found.items()}


@pytest.mark.parametrize("prefix", ["", "module."])
def test_openais_layout(tmp_path, prefix):
    network = clip(hidden_size=128, num_attention_heads=2, intermediate_size=512)
    state = openai(network, prefix)
    state[prefix + "input_resolution"] = torch.tensor(32)
    torch.save(state, tmp_path / "clip.pt")
    # the file does not contain the image tower's heads, and a width of 64 does not imply them
    with pytest.raises(ValueError, match="heads"):
        weights.load(tmp_path / "clip.pt")


def test_openais_layout_with_a_width_that_implies_its_heads(tmp_path):
    config = transformers.CLIPConfig(
        vision_config=SMALL | {"hidden_size": 192, "num_attention_heads": 3, "hidden_act": "quick_gelu"},
        text_config=TEXT | {"hidden_size": 128, "hidden_act": "quick_gelu"},
        projection_dim=32,
    )
    network = randomised(transformers.CLIPModel(config))
    state = openai(network)
    state["input_resolution"] = torch.tensor(32)
    torch.save(state, tmp_path / "clip.pt")
    lines = "#version: 0.2\n" + "\n".join(_merge(a, b) for a, b in MERGES)
    (tmp_path / "merges.txt").write_text(lines + "\n", encoding="utf-8")
    model = weights.load(tmp_path / "clip.pt")
    paired = text.restored(model.extras, "it")
    assert paired.tokenizer is not None
    assert paired.tokenizer.merges.tolist() == MERGES.tolist()
    assert (paired.tower(tokens()) - vectors(network, tokens())).abs().max() < 1e-5
    assert torch.equal(model.extras.tensors["projection.weight"], network.visual_projection.weight)


def scripted(state, file, activation):
    """A TorchScript archive of these tensors, with an activation among its modules."""

    class Part(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    top = Part()
    for name, x in state.items():
        *modules, last = name.split(".")
        module = top
        for each in modules:
            if not hasattr(module, each):
                module.add_module(each, Part())
            module = getattr(module, each)
        module.register_parameter(last, torch.nn.Parameter(x, requires_grad=False))
    top.visual.transformer.resblocks.get_submodule("0.mlp").add_module("gelu", activation)
    torch.jit.script(top).save(file)


class QuickGELU(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:.*torch.jit.*")
@pytest.mark.parametrize(("activation", "expected"), [(QuickGELU(), "quickgelu"), (torch.nn.GELU(), "gelu")])
def test_archives_without_input_resolution(tmp_path, activation, expected):
    """OpenAI's archives are QuickGELU also where they do not say `input_resolution`."""
    config = transformers.CLIPConfig(
        vision_config=SMALL | {"hidden_size": 192, "num_attention_heads": 3},
        text_config=TEXT | {"hidden_size": 128},
        projection_dim=32,
    )
    state = openai(randomised(transformers.CLIPModel(config)))
    scripted(state, tmp_path / "clip.pt", activation)
    model = weights.load(tmp_path / "clip.pt")
    assert model.encoder.spec().get("mlp", "gelu") == expected
    assert model.extras.facts["text"]["mlp"] == expected
    assert model.extras.facts["text"]["repaired"] is True


def _merge(a, b):
    """As a line of a file: 85 pairs of a printed byte and one that ends a word."""
    return f"{chr(0x21 + a)} {chr(0x21 + b - 256)}</w>"


def test_an_unsupported_text_tower_is_left_out_and_reported(tmp_path):
    network = clip()
    network.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["model_cfg"] = {"text_cfg": {"no_causal_mask": True}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = weights.load(tmp_path)
    assert not model.extras.tensors
    assert any("unsupported kind (no_causal_mask)" in line for line in model.provenance["loaded"])
    with pytest.raises(ValueError, match="has no text tower: train one"):
        text.restored(model.extras, "it")


def test_other_merges_are_refused(tmp_path):
    clip().save_pretrained(tmp_path)
    model = weights.load(tmp_path)
    assert text.restored(model.extras, "it").tokenizer is None
    with pytest.raises(ValueError, match="knows 599 tokens, these merges make 514"):
        text.restored(model.extras, "it", text_tokenizer.Tokenizer().merges)
