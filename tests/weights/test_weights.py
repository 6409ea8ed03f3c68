"""Saving and loading an encoder: bit for bit, strict, and refusals in one line."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from omma import backbones, weights
from omma.core.protocols import Preprocess
from omma.data.sources.collection import ArrayImages

PREPROCESS = Preprocess(
    size=32, channels=3, low=(0.0,) * 3, high=(255.0,) * 3, mean=(0.5,) * 3, std=(0.25,) * 3, crop_share=0.9
)


@pytest.fixture(autouse=True)
def one_thread():
    """Networks this small lose by threads, and on a busy machine threads wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(seed=0, **options):
    torch.manual_seed(seed)
    return backbones.build(name="vit-ti/16", image_size=32, channels=3, **options)


@pytest.fixture
def run(tmp_path):
    weights.save(tmp_path / "run", build(), PREPROCESS, {"method": "dino", "source": "birds"})
    return tmp_path / "run"


def picture(seed=0, size=(40, 50)):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def test_round_trip_is_bit_equal(run):
    model, encoder = weights.load(run), build()
    assert model.preprocess == PREPROCESS
    assert model.provenance == {"method": "dino", "source": "birds"}
    assert model.encoder.spec() == encoder.spec()
    loaded = model.encoder.state_dict()
    assert all(torch.equal(x, loaded[name]) for name, x in encoder.state_dict().items())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(x).pooled, encoder.eval()(x).pooled)
    assert not model.training
    assert model.digest == weights.digest(encoder) == weights.load(run / "model.safetensors").digest


def test_what_stands_in_the_folder(run):
    assert sorted(f.name for f in run.iterdir()) == ["model.json", "model.safetensors"]
    description = json.loads((run / "model.json").read_text())
    assert description.keys() == {"schema", "spec", "preprocess", "provenance", "digests", "omma"}
    state = safetensors.torch.load_file(run / "model.safetensors")
    assert {x.dtype for x in state.values()} == {torch.float32}


def test_bf16_weights_are_saved_in_fp32(tmp_path):
    weights.save(tmp_path, build().bfloat16(), PREPROCESS)
    assert weights.load(tmp_path).encoder.patch_embed.proj.weight.dtype == torch.float32


def test_loads_strictly_into_timm_with_equal_features(run):
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0)
    theirs.load_state_dict(safetensors.torch.load_file(run / "model.safetensors"), strict=True)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(theirs.eval()(x), weights.load(run)(x).pooled, atol=1e-4)


def test_a_renamed_pair_loads(run):
    (run / "model.safetensors").rename(run / "birds.safetensors")
    (run / "model.json").rename(run / "birds.json")
    assert weights.load(run / "birds.safetensors").provenance["method"] == "dino"


def test_untrained_is_the_same_network_anew(run):
    model = weights.load(run)
    state = torch.random.get_rng_state()
    a, b, c = model.untrained(), model.untrained(0), model.untrained(1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert a.digest == b.digest == weights.digest(build(seed=0))
    assert a.digest != c.digest
    assert a.encoder.spec() == model.encoder.spec()


def test_embed_takes_paths_arrays_and_pictures(run, tmp_path):
    model, array = weights.load(run), picture()
    Image.fromarray(array).save(tmp_path / "a.png")
    vectors = model.embed([tmp_path / "a.png", str(tmp_path / "a.png"), array, Image.fromarray(array)])
    assert vectors.shape == (4, 192)
    assert vectors.dtype == np.float32
    assert np.allclose(vectors, vectors[:1], atol=1e-5)
    assert np.allclose(model.embed(ArrayImages(array[None])), vectors[:1], atol=1e-5)
    assert model.embed([]).shape == (0, 192)
    assert model.embed([array[:, :, 0], picture(1)], batch=1).shape == (2, 192)  # grey is made RGB


def test_embed_names_what_it_cannot_read(run, tmp_path):
    model = weights.load(run)
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    for wrong, words in (
        ([picture(), tmp_path / "torn.png"], "torn.png"),
        ([tmp_path / "none.png"], "no such file"),
        ([np.zeros((4, 4, 5), np.uint8)], "image 0 of the list"),
        (str(tmp_path / "torn.png"), "torn.png"),
    ):
        with pytest.raises(ValueError, match=words):
            model.embed(wrong)


def _truncate(run):
    file = run / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _flip(run):
    file = run / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-50] ^= 1
    file.write_bytes(data)


def _other_shape(run):
    description = json.loads((run / "model.json").read_text())
    description["spec"]["image_size"] = 64
    (run / "model.json").write_text(json.dumps(description))


def _other_names(run):
    description = json.loads((run / "model.json").read_text())
    description["spec"]["registers"] = 4
    (run / "model.json").write_text(json.dumps(description))


def _future(run):
    (run / "model.json").write_text(json.dumps({"schema": 99}))


def _unknown(run):
    description = json.loads((run / "model.json").read_text())
    description["spec"]["name"] = "vit-zz/16"
    (run / "model.json").write_text(json.dumps(description))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_truncate, "damaged"),
        (_flip, "digest"),
        (_other_shape, "another shape of 1 .*pos_embed"),
        (_other_names, "lacks 1 .*reg_token"),
        (_future, "schema 99"),
        (_unknown, "cannot rebuild"),
        (lambda run: (run / "model.json").write_text("{"), "damaged"),
        (lambda run: (run / "model.json").unlink(), "no model.json"),
        (lambda run: (run / "model.safetensors").unlink(), "is it a run folder"),
    ],
)
def test_damage_is_refused_in_one_line(run, damage, words):
    damage(run)
    with pytest.raises(ValueError, match=words) as caught:
        weights.load(run)
    assert "\n" not in str(caught.value)


def test_what_is_no_model_is_refused(tmp_path):
    (tmp_path / "a.pth").touch()
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    for wrong, words in (
        (tmp_path / "none", "does not exist"),
        (tmp_path / "a.pth", "empty"),
        (tmp_path / "run", "resume"),
    ):
        with pytest.raises(ValueError, match=words):
            weights.load(wrong)


def test_saving_again_replaces(run):
    weights.save(run, build(seed=1), PREPROCESS)
    assert weights.load(run).digest == weights.digest(build(seed=1))
    assert len(list(run.iterdir())) == 2
