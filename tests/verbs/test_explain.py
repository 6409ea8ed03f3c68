"""`omma explain`: a page with what was asked for, arrays, and one-line refusals."""

import re

import numpy as np
import pytest
from explained import model
from PIL import Image

import omma
from omma import cli, weights


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A saved network with a classifier of three classes."""
    made = model()
    folder = tmp_path_factory.mktemp("network")
    weights.save(folder, made.encoder, made.preprocess, {}, made.extras)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Six pictures of any size, and a file that is none."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(6):
        pixels = rng.integers(0, 256, size=(20 + i, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"picture {i}.png")
    (folder / "none.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return folder


def test_defaults_on_a_page(network, pictures, tmp_path):
    found = omma.explain(network, pictures, tmp_path / "page.html")
    assert len(found.paths) == 6
    assert [reason for path, reason in found.bad if "none.png" in path]
    assert {"attention", "rollout", "occlusion", "gradcam", "pca"} <= set(found.arrays)
    assert all(len(found.arrays[kind]) == 6 for kind in ("rollout", "occlusion", "gradcam", "pca"))
    page = (tmp_path / "page.html").read_text()
    for title in ("Attention", "Attention rollout", "Occlusion", "Grad-CAM", "Patch features"):
        assert f"<h2>{title}</h2>" in page
    assert "picture 3.png" in page
    assert not re.search(r"(src|href)=.?https?:", page)  # it loads nothing from elsewhere
    assert re.search(r"0 to [\d.e+-]+", page)  # pictures carry their scale


def test_arrays_without_a_page(network, pictures):
    (name,) = omma.explain(network, pictures / "picture 0.png", what=["rollout"], class_name="class 2").names
    assert name == "class 2"
    several = omma.explain(
        network, [pictures / "picture 1.png", pictures / "picture 0.png"], what=["rollout"]
    )
    alone = omma.explain(weights.load(network), pictures / "picture 1.png", what=["rollout"])
    np.testing.assert_allclose(several.arrays["rollout"][0], alone.arrays["rollout"][0], atol=1e-6)
    assert several.page is None


def test_more_images_than_are_drawn_are_drawn_by_chance(network, pictures):
    first, again, other = (
        omma.explain(network, pictures, what=["rollout"], most=2, seed=seed) for seed in (0, 0, 3)
    )
    assert first.paths == again.paths != other.paths
    assert any("2 images of 6" in note or "2 images of 7" in note for note in first.notes)


def test_tests_are_told_beside_the_pictures(network, pictures, tmp_path, capsys):
    out = tmp_path / "tested.html"
    words = ["explain", str(network), str(pictures), "--what", "rollout", "occlusion", "--out", str(out)]
    with pytest.raises(SystemExit) as ended:
        cli.main([*words, "--test", "sanity", "insertion"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    for kind in ("rollout", "occlusion"):
        assert f"{kind}: sanity: With all weights random the maps" in said
        assert f"{kind}: insertion and deletion: " in said
    page = out.read_text()
    assert "<h2>Sanity</h2>" in page
    assert "<h2>Insertion and deletion</h2>" in page
    assert page.count("With all weights random the maps") == 4  # at the top, and beside the pictures


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--what", "nothing"], "--what nothing: there is no such kind: choose among attention"),
        (["--what", "parts"], "--what parts: .* chooses no parts .*; this model has attention, rollout"),
        (["--class", "horse"], "--class horse: the model has no such class: choose one, such as class 0"),
        (["--test", "luck"], "--test luck: there is no such test: choose sanity or insertion"),
        (["--layers", "5"], "layer 5: vit/4 has 2"),
        (["--image-size", "17"], "--image-size 17: must be a multiple of 4"),
        (["--most", "0"], "--most 0: must be at least 1"),
    ],
    ids=["kind", "lacks", "class", "test", "layer", "size", "most"],
)
def test_refusals_are_one_line(network, pictures, tmp_path, capsys, options, words):
    out = tmp_path / "page.html"
    with pytest.raises(SystemExit) as ended:
        cli.main(["explain", str(network), str(pictures), "--out", str(out), *options])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(words, line)
    assert not out.exists()


def test_a_larger_input_gives_finer_maps(network, pictures):
    found = omma.explain(network, pictures / "picture 0.png", what=["rollout"], image_size=32)
    assert found.arrays["rollout"].shape == (1, 8, 8)
