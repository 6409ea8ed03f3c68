"""CLIP: loss and gradients of transformers' CLIPModel, what locks and clamps, what is kept, whole runs."""

import dataclasses
import math
import sys

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from published_files import SMALL, randomised

import omma
from omma import backbones, weights
from omma.backbones.layers import text
from omma.core.protocols import Batch, Clock, Context, Extras, Key, Preprocess
from omma.data import text_tokenizer
from omma.methods import clip
from omma.verbs.evaluate import evaluate
from omma.verbs.pretrain import pretrain

CLOCK = Clock(1, 10, 0.1)
LITTLE = {"out": 16, "text_depth": 2, "text_dim": 32, "text_heads": 2}


def method(size=16, model=None, encoder=None, **options):
    torch.manual_seed(0)
    config = clip.Config(**(LITTLE | options))
    tokenizer = clip.tokenizer(config, model, ())
    encoder = encoder or backbones.build(name="vit-n/8", image_size=size)
    return clip.Method(encoder, config, Context(image_size=size, tokenizer=tokenizer, model=model))


def batch(b=6, size=16):
    generator = torch.Generator().manual_seed(3)
    tokens = text_tokenizer.Tokenizer()([f"caption {i}" for i in range(b)])
    key = Key(0, np.zeros(b, np.int64), np.arange(b))
    return Batch((torch.randn(b, 1, 3, size, size, generator=generator),), key, None, tokens)


def preprocess(size=16):
    return Preprocess(
        size=size, channels=3, low=(0.0,) * 3, high=(255.0,) * 3, mean=(0.5,) * 3, std=(0.25,) * 3
    )


# ---------------------------------------------------------------- against transformers
def test_loss_and_gradients_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers (dev group) is not installed")
    vision = SMALL | {"hidden_act": "quick_gelu"}
    words = {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96,
        "vocab_size": 514, "bos_token_id": 512, "eos_token_id": 513, "hidden_act": "quick_gelu",
    }  # fmt: skip
    config = transformers.CLIPConfig(vision_config=vision, text_config=words, projection_dim=32)
    network = randomised(transformers.CLIPModel(config))
    network.logit_scale.data.fill_(2.0)
    network.save_pretrained(tmp_path)
    loaded = weights.load(tmp_path)
    bare = Extras(
        loaded.extras.tensors | {text.MERGES: torch.zeros(0, 2, dtype=torch.int32)}, loaded.extras.facts
    )
    loaded.extras = bare
    ours = method(32, loaded, loaded.encoder, text_init="published")
    assert torch.equal(ours.projection.weight, network.visual_projection.weight)
    context = batch(size=32)
    ours.encoder.train()
    loss = ours(context, CLOCK).loss
    loss.backward()
    found = network(input_ids=context.text, pixel_values=context.views[0][:, 0], return_loss=True)
    found.loss.backward()
    assert abs(loss - found.loss) < 1e-5
    for a, b in (
        (ours.text.token_embed.weight, network.text_model.embeddings.token_embedding.weight),
        (ours.text.projection.weight, network.text_projection.weight),
        (ours.projection.weight, network.visual_projection.weight),
        (ours.logit_scale, network.logit_scale),
        (ours.encoder.pos_embed, network.vision_model.embeddings.position_embedding.weight),
        (ours.text.norm.bias, network.text_model.final_layer_norm.bias),
    ):
        assert (a.grad.reshape(b.grad.shape) - b.grad).abs().max() < 1e-5 * max(
            1.0, float(b.grad.abs().max())
        )


# ---------------------------------------------------------------- the text tower
def test_what_follows_the_end_changes_nothing():
    tower = text.TextTower(vocabulary=514, end=513, dim=32, depth=2, heads=2, out=8).eval()
    tokens = text_tokenizer.Tokenizer()(["one", "a longer caption"])
    other = tokens.clone()
    other[0, 10:] = 7
    with torch.no_grad():
        assert torch.equal(tower(tokens)[0], tower(other)[0])
        short = text_tokenizer.trimmed(tokens, 513)
        assert short.shape == (2, 16)
        assert (tower(short) - tower(tokens)).abs().max() < 1e-6


def test_it_starts_as_in_the_papers_code():
    """Deviations that its initialize_parameters asks for; and as many parameters as its text tower has."""
    torch.manual_seed(0)
    state = text.TextTower(vocabulary=2000, end=1999).state_dict()
    for name, deviation in {
        "token_embed.weight": 0.02,
        "pos_embed": 0.01,
        "blocks.3.attn.qkv.weight": 512**-0.5,
        "blocks.3.attn.proj.weight": 512**-0.5 * 24**-0.5,
        "blocks.3.mlp.fc1.weight": 1024**-0.5,
        "blocks.3.mlp.fc2.weight": 512**-0.5 * 24**-0.5,
        "projection.weight": 512**-0.5,
    }.items():
        assert float(state[name].std()) == pytest.approx(deviation, rel=0.02), name
    assert sum(x.numel() for x in text.TextTower(vocabulary=49_408, end=49_407).parameters()) == 63_428_096


# ---------------------------------------------------------------- the method
def test_scale_starts_and_is_clamped_as_in_the_paper():
    built = method()
    assert built.logit_scale.exp().item() == pytest.approx(1 / 0.07)
    built.logit_scale.data.fill_(5.0)
    built.after_step(CLOCK, [])
    assert built.logit_scale.exp().item() == pytest.approx(100.0)
    sigmoid = method(loss="siglip")
    assert sigmoid.logit_scale.item() == pytest.approx(math.log(10.0))
    assert sigmoid.logit_bias.item() == -10.0
    output = sigmoid(batch(), CLOCK)
    output.loss.backward()
    assert sigmoid.logit_bias.grad is not None
    assert torch.isfinite(output.loss)


def test_the_scale_never_falls_below_one():
    built = method()
    built.logit_scale.data.fill_(-1.0)
    built.after_step(CLOCK, [])
    assert built.logit_scale.item() == 0.0


def test_mlp_biases_start_as_in_openais_code():
    torch.manual_seed(0)
    drawn, zero = (text.TextTower(vocabulary=8, end=7, depth=1, dim=64, mlp_biases=b) for b in (True, False))
    state = drawn.state_dict()
    for name, fan_in in (("fc1", 64), ("fc2", 256)):
        bias = state[f"blocks.0.mlp.{name}.bias"]
        assert 0.8 * fan_in**-0.5 < bias.abs().max() <= fan_in**-0.5
    assert not state["blocks.0.attn.qkv.bias"].any()
    assert not any(x.any() for n, x in zero.state_dict().items() if "mlp" in n and n.endswith("bias"))


def test_how_texts_are_read_is_recorded(monkeypatch):
    """A run's texts are repaired by ftfy or not, and its model reads further ones likewise."""
    pytest.importorskip("ftfy", reason="ftfy (dev group) is not installed")
    for repair in (True, False):
        built = method(repair=repair)
        extras = built.extras()
        assert extras.facts["text"].get("repaired", False) is repair
        paired = text.restored(extras, "run")
        assert paired.tokenizer is not None
        assert paired.tokenizer.repaired is repair
        model = weights.Model(built.encoder, preprocess(), extras=extras)
        assert clip.tokenizer(clip.Config(text_init="run"), model, ()).repaired is repair
    with pytest.raises(ValueError, match="repair False"):  # the last one was trained without
        clip.tokenizer(clip.Config(text_init="run", repair=True), model, ())
    monkeypatch.setitem(sys.modules, "ftfy", None)
    with pytest.raises(ValueError, match="ftfy is not installed"):
        clip.tokenizer(clip.Config(repair=True), None, ["a dog"])


def test_scalars_norms_and_biases_do_not_decay():
    built = method(loss="siglip")
    spared = {id(p) for group in built.groups() if not group.decay for p in group.params}
    for name, p in built.named_parameters():
        if p.ndim < 2:
            assert id(p) in spared, name


def test_a_locked_image_tower_stays_as_it_is():
    encoder = backbones.build(name="vitc-15mf", image_size=32)  # it has batch norms
    built = method(32, encoder=encoder, locked=True)
    before = {name: x.clone() for name, x in encoder.state_dict().items()}
    optimizer = torch.optim.SGD([p for g in built.groups() for p in g.params], lr=0.1)
    built.train()
    assert not encoder.training
    assert built.text.training
    for _ in range(2):
        optimizer.zero_grad()
        built(batch(size=32), CLOCK).loss.backward()
        optimizer.step()
    assert all(torch.equal(x, before[name]) for name, x in encoder.state_dict().items())
    assert all(p.grad is None for p in encoder.parameters())
    assert built.projection.weight.grad is not None
    inside = {id(p) for p in encoder.parameters()}
    assert not any(id(p) in inside for g in built.groups() for p in g.params)


def test_what_is_kept_rebuilds_it(tmp_path):
    torch.manual_seed(1)
    config = clip.Config(**LITTLE, quickgelu=False)
    tokenizer = clip.tokenizer(config, None, ["a dog runs", "a dog sits", "the dog"])
    encoder = backbones.build(name="vit-n/8", image_size=16)
    built = clip.Method(encoder, config, Context(image_size=16, tokenizer=tokenizer)).eval()
    weights.save(tmp_path, encoder, preprocess(), {}, built.extras())
    model = weights.load(tmp_path)
    paired = text.restored(model.extras, "run")
    assert paired.tokenizer is not None
    assert np.array_equal(paired.tokenizer.merges, tokenizer.merges)
    tokens = tokenizer(["a dog", "else"])
    with torch.no_grad():
        assert torch.equal(paired.tower(tokens), built.text(tokens))
    assert tuple(model.extras.tensors["projection.weight"].shape) == (16, encoder.dim)
    found = paired.texts(["a dog", "else"])
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)
    features = np.random.default_rng(0).normal(size=(3, encoder.dim)).astype(np.float32)
    np.testing.assert_allclose(np.linalg.norm(paired.images(features), axis=1), 1, rtol=1e-6)


def test_a_text_tower_goes_on():
    first = method(merges=None)
    first.logit_scale.data.fill_(3.0)
    model = weights.Model(first.encoder, preprocess(), extras=first.extras())
    second = method(model=model, encoder=backbones.build(name="vit-ti/8", image_size=16), text_init="run")
    assert torch.equal(second.text.token_embed.weight, first.text.token_embed.weight)
    assert second.logit_scale.item() == 3.0
    assert not torch.equal(second.projection.weight, first.projection.weight)  # of another image tower
    same = method(model=model, encoder=first.encoder, text_init="run")
    assert torch.equal(same.projection.weight, first.projection.weight)
    assert method(model=model, text_init="run", loss="siglip").logit_bias.item() == -10.0


def test_needs():
    assert clip.needs(clip.Config()).text
    assert clip.needs(clip.Config()).model is None
    named = clip.needs(clip.Config(text_init="run"))
    assert (named.model, named.beside) == ("text_init", (text.TABLE,))


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"loss": "cosine"}, "method.loss='cosine': choose 'clip', 'siglip'"),
        ({"text_dim": 100}, "multiple of text_heads=8"),
        ({"context": 2}, "method.context=2"),
        ({"learned": -1}, "method.learned=-1"),
        ({"scale": (0.9, 0.2)}, "method.scale"),
        ({"flip": 2.0}, "method.flip"),
        ({"out": 0}, "method.out=0"),
    ],
)
def test_refused(options, why):
    with pytest.raises(ValueError, match=why):
        clip.Config(**options)


def test_merges_of_another_tokenizer_are_refused(tmp_path):
    (tmp_path / "m.txt").write_text("a b\n")
    first = method()
    model = weights.Model(first.encoder, preprocess(), extras=first.extras())
    config = clip.Config(**LITTLE, text_init="run", merges=str(tmp_path / "m.txt"))
    with pytest.raises(ValueError, match="are not those of run"):
        clip.tokenizer(config, model, ())
    without = Extras(
        {n: x for n, x in first.extras().tensors.items() if n != text.MERGES}, first.extras().facts
    )
    bare = weights.Model(first.encoder, preprocess(), extras=without)
    with pytest.raises(ValueError, match="does not hold its tokenizer's merges"):
        clip.tokenizer(dataclasses.replace(config, merges=None), bare, ())


# ---------------------------------------------------------------- whole runs
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 60, 220), "grey": (120, 120, 120)}
RUN = {
    "method": "clip",
    "model": "vit-n/8",
    "image_size": 16,
    "batch_size": 16,
    "device": "cpu",
    "workers": 0,
}
OPTIONS = {name: str(value) for name, value in LITTLE.items()}


def coloured(folder, n=48, hostile=False):
    """Plain pictures, each with two captions that say its colour; a manifest with splits and labels."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    lines = [b"path,caption0,caption1,class,split"]
    for i in range(n):
        name, colour = list(COLOURS.items())[i % 4]
        pixels = np.clip(np.array(colour) + rng.normal(0, 12, (16, 16, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        one, two = f"a photo of a {name}.".encode(), f"it is {name}".encode()
        if hostile and i == 1:
            one, two = b"", b"\xff\xfe"
        if hostile and i == 2:
            two = b"x" * 4000
        split = b"test" if i >= n - 16 else b"train"
        lines.append(b",".join([f"{i}.png".encode(), one, two, name.encode(), split]))
    (folder / "pairs.csv").write_bytes(b"\n".join(lines) + b"\n")
    return folder / "pairs.csv"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    pairs, out = coloured(folder / "data"), folder / "run"
    result = pretrain(pairs, out=out, steps=60, lr=2e-3, options=OPTIONS, **RUN)
    assert result.steps == 60
    return pairs, out


def test_classes_are_told_by_their_names_and_colours_by_captions(trained):
    pairs, out = trained
    found = evaluate(out, pairs, protocols=("zeroshot", "retrieval", "knn"), device="cpu")
    best = {(r.subject, r.metric): r for r in found.results if r.protocol != "knn"}
    zero = best["trained", "top1"]
    assert zero.value > 0.9
    assert (zero.n_test, zero.classes) == (16, 4)
    assert best["untrained", "top1"].value < zero.value
    assert ("pixels", "top1") not in best
    recall = best["trained", "recall@5, image to caption"]
    assert recall.value > 0.9  # four of sixteen images have the same colour
    assert recall.n_test == 16
    assert best["trained", "recall@5, caption to image"].n_test == 32
    assert recall.split == "the collection's own split: its test part"
    assert recall.balanced_accuracy is None
    heads, rows = found.table()
    assert heads == ["top-1, 95 % interval", "pixels", "untrained", "trained"]
    assert [row[0] for row in rows][:2] == ["zero-shot", "k-NN (k=20, T=0.07)"]
    assert rows[0][1] == ""
    assert "16 images and 32 captions" in found.protocol()
    assert "recall@1, image to caption" in found.verdict()
    assert any(
        note.startswith("zero-shot: 4 classes by their names, as 'a photo of a {}.'") for note in found.notes
    )
    assert any("their captions were read then" in note for note in found.notes)
    assert all(r["value"] >= 0 for r in found.to_json()["results"])


def test_prompts_of_a_file(trained, tmp_path):
    pairs, out = trained
    (tmp_path / "t.txt").write_text("it is {}\na photo of a {}.\n")
    found = evaluate(
        out, pairs, protocols=("zeroshot",), prompts=tmp_path / "t.txt", floors=False, device="cpu"
    )
    (result,) = found.results
    assert result.settings == {"templates": 2, "template": "it is {}"}
    with pytest.raises(ValueError, match="prompts, descriptions and merges are for"):
        evaluate(out, pairs, prompts=tmp_path / "t.txt")


def test_the_run_says_how_captions_are_read(trained):
    _, out = trained
    description = omma.load(out).extras.facts
    assert description["text"]["heads"] == 2


def test_captions_composed_of_columns(tmp_path):
    coloured(tmp_path, n=24)
    rows = [f"{i}.png,{list(COLOURS)[i % 4]},{'' if i == 1 else 'here'},{i}" for i in range(24)]
    rows[2] = "2.png,,,2"
    (tmp_path / "art.csv").write_text("\n".join(["path,colour,place,number", *rows]))
    text, said = "a {colour} wall {place}.", []
    options = OPTIONS | {"caption": text}
    pretrain(tmp_path / "art.csv", out=tmp_path / "run", steps=2, options=options, listen=said.append, **RUN)
    plan = next(event for event in said if hasattr(event, "notes"))
    assert plan.used == 23
    first = "captions are composed by 'a {colour} wall {place}.' (the first: 'a red wall here.')"
    assert f"{first}; of 24 images these lack a value: 1 colour, 2 place" in plan.notes
    known = {"protocols": ("retrieval",), "floors": False, "device": "cpu"}
    found = evaluate(tmp_path / "run", tmp_path / "art.csv", **known)
    assert found.results[0].settings["captions"] == 23
    assert any(note.startswith(first) for note in found.notes)
    (tmp_path / "plain.csv").write_text("path\n0.png\n1.png\n")
    with pytest.raises(ValueError, match="path and caption, or with colour and place, of which the model's"):
        evaluate(tmp_path / "run", tmp_path / "plain.csv", **known)
    with pytest.raises(
        ValueError, match=r"--method.caption: .*art.csv has no column era; choose among path, colour"
    ):
        pretrain(tmp_path / "art.csv", options={"caption": "a {era} wall"}, **RUN)
    with pytest.raises(ValueError, match=r"or compose them \(--method.caption 'a {COLUMN}'\)"):
        pretrain(tmp_path / "art.csv", **RUN)


def test_captions_that_cannot_be_used(tmp_path):
    pairs = coloured(tmp_path / "data", hostile=True)
    said = []
    pretrain(
        pairs, out=tmp_path / "run", steps=2, options=OPTIONS | {"learned": "0"}, listen=said.append, **RUN
    )
    plan = next(event for event in said if hasattr(event, "notes"))
    assert plan.used == 31
    assert "1 of 32 images have no usable caption and are left out" in plan.notes
    assert "1 caption is not valid UTF-8 and is not used" in plan.notes
    assert "1 caption is empty and is not used" in plan.notes
    assert "1 of 62 captions are longer than 77 tokens and are cut" in plan.notes
    assert any("captions are read with 514 tokens (bytes only" in note for note in plan.notes)


def test_lit_goes_on_from_a_run(trained, tmp_path):
    pairs, out = trained
    said = []
    options = OPTIONS | {"locked": "True"}
    run = {key: value for key, value in RUN.items() if key not in ("model", "image_size")}
    pretrain(pairs, init=out, out=tmp_path / "lit", steps=3, options=options, listen=said.append, **run)
    plan = next(event for event in said if hasattr(event, "notes"))
    assert any("its encoder stays as it is" in note for note in plan.notes)
    before, after = omma.load(out).encoder.state_dict(), omma.load(tmp_path / "lit").encoder.state_dict()
    assert all(torch.equal(x, after[name]) for name, x in before.items())
    with pytest.raises(ValueError, match="give weights to start from"):
        pretrain(pairs, out=tmp_path / "none", steps=1, options=options, **RUN)


def test_the_text_tower_of_a_run_goes_on(trained, tmp_path):
    pairs, out = trained
    pretrain(pairs, out=tmp_path / "next", steps=1, options={"text_init": str(out)}, **RUN)
    old, new = omma.load(out).extras, omma.load(tmp_path / "next").extras
    assert torch.equal(old.tensors[text.MERGES], new.tensors[text.MERGES])
    moved = (old.tensors[text.TABLE] - new.tensors[text.TABLE]).abs().max()
    assert 0 <= moved < 0.01
    folder = tmp_path / "plain"
    weights.save(folder, backbones.build(name="vit-n/8", image_size=16), preprocess())
    with pytest.raises(ValueError, match="is not what clip learns from, a model with a text tower"):
        pretrain(pairs, out=tmp_path / "x", steps=1, options={"text_init": str(folder)}, **RUN)


def test_refused_in_one_line(trained, tmp_path):
    pairs, out = trained
    weights.save(tmp_path / "plain", backbones.build(name="vit-n/8", image_size=16), preprocess())
    for protocol in ("zeroshot", "retrieval"):
        with pytest.raises(ValueError, match="has no text tower: train one") as error:
            evaluate(tmp_path / "plain", pairs, protocols=(protocol,), device="cpu")
        assert "\n" not in str(error.value)
    bare = tmp_path / "bare"
    bare.mkdir()
    for i in range(3):
        Image.fromarray(np.full((16, 16, 3), 40 * i, np.uint8)).save(bare / f"{i}.png")
    with pytest.raises(ValueError, match="has no captions"):
        evaluate(out, bare, protocols=("retrieval",), device="cpu")
    with pytest.raises(ValueError, match="clip learns from captions, and these images have none"):
        pretrain(bare, out=tmp_path / "x", steps=1, **RUN)
    (bare / "labels.csv").write_text("path,caption\n0.png, \n1.png,\n")
    with pytest.raises(ValueError, match="no image has a usable caption"):
        pretrain(bare, out=tmp_path / "x", steps=1, **RUN)


def test_an_array_in_memory_has_no_captions(trained):
    images = omma.data.sources.collection.ArrayImages(np.zeros((4, 16, 16, 3), np.uint8), source="zeros")
    with pytest.raises(ValueError, match="zeros has no captions"):
        evaluate(trained[1], images, protocols=("retrieval",), device="cpu")
    images.text = pa.array([["x"]] * 4, pa.large_list(pa.large_string()))
    found = evaluate(trained[1], images, protocols=("retrieval",), floors=False, device="cpu")
    assert {r.value for r in found.results if "@1," in r.metric} == {0.0}  # all alike: nothing is found
