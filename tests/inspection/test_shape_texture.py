"""The cue-conflict test: the 16 categories, what is counted, and who decides."""

import csv
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from omma import backbones
from omma.core.protocols import Extras, Preprocess
from omma.data.sources.collection import open_images
from omma.evaluation.job import Job
from omma.inspection import cue_conflict, shape_texture, sixteen
from omma.weights import Model

DATA = Path(__file__).parents[2].parent / "shared" / "data"
WORDNET = DATA / "taxonomy_vocab_core.zip"
# the categories' synsets in WordNet 3.0; ImageNet's cleaver and letter opener are under knife's edge tool
ROOTS = {
    "airplane": "n02691156", "bear": "n02131653", "bicycle": "n02834778", "bird": "n01503061",
    "boat": "n02858304", "bottle": "n02876657", "car": "n02958343", "cat": "n02120997",
    "chair": "n03001627", "clock": "n03046257", "dog": "n02084071", "elephant": "n02503517",
    "keyboard": "n03614007", "knife": "n03623556", "oven": "n03862676", "truck": "n04490091",
}  # fmt: skip
COLOURS = {"red": (220, 30, 30), "green": (30, 220, 30), "blue": (30, 30, 220)}


# ---------------------------------------------------------------- 16 categories
def test_the_definition_has_207_classes_of_which_none_is_twice():
    places = [place for name in sixteen.CATEGORIES for place in sixteen.places(name)]
    ids = [each for name in sixteen.CATEGORIES for each in sixteen.wordnet(name)]
    assert len(sixteen.CATEGORIES) == 16
    assert len(places) == len(ids) == len(set(places)) == len(set(ids)) == 207
    assert {name: len(sixteen.places(name)) for name in ("airplane", "bird", "dog", "truck")} == {
        "airplane": 1, "bird": 49, "dog": 109, "truck": 8
    }  # fmt: skip
    by_place = [each for _, each in sorted(zip(places, ids))]
    assert by_place == sorted(by_place)  # ImageNet's order is that of the ids


@pytest.mark.skipif(not WORDNET.exists(), reason=f"{WORDNET.name} is not there")
def test_every_class_lies_below_its_category_in_wordnet_and_at_its_place_in_imagenet():
    with zipfile.ZipFile(WORDNET) as archive:
        index = json.loads(archive.read("cvjena/ILSVRC/imagenet_class_index.json"))
        edges = [
            row.split()
            for row in archive.read("cvjena/ILSVRC/wordnet.parent-child.pruned.txt").decode().splitlines()
        ]
    parents: dict[str, list[str]] = {}
    for parent, child in edges:
        parents.setdefault(child, []).append(parent)
    for name in sixteen.CATEGORIES:
        for place, each in zip(sixteen.places(name), sixteen.wordnet(name), strict=True):
            above, todo = {each}, [each]
            while todo:
                todo = [p for child in todo for p in parents.get(child, ()) if p not in above]
                above.update(todo)
            assert ROOTS[name] in above, (name, each)
            assert index[str(place)][0] == each


def test_a_classifier_is_read_by_wordnet_ids_by_names_or_by_imagenets_order():
    ids = [f"{each} some animal" for name in sixteen.CATEGORIES for each in sixteen.wordnet(name)]
    found = sixteen.groups(ids[::-1])
    assert found is not None
    assert ids[::-1][found[0]["knife"][0]] == "n03041632 some animal"
    assert sum(map(len, found[0].values())) == 207
    numbered = sixteen.groups([str(k) for k in range(1000)])
    assert numbered is not None
    assert numbered[0]["elephant"] == [385, 386]
    assert "taken to be in ImageNet's order" in numbered[1]
    names = [f"thing {k}" for k in range(1000)]
    assert sixteen.groups(names) is None  # a thousand classes of another data set
    for place, word in sixteen.LANDMARKS.items():
        names[place] = f"{word}, of ImageNet"
    named = sixteen.groups(names)
    assert named is not None
    assert named[0] == numbered[0]
    assert sixteen.groups(["cat", "dog"]) is None


def test_categories_have_the_average_not_the_sum():
    p = np.array([[0.3, 0.2, 0.2, 0.2, 0.1]], np.float32)
    assert sixteen.averaged(p, {"one": [0], "three": [1, 2, 3]}).tolist() == [pytest.approx([0.3, 0.2])]


# ---------------------------------------------------------------- pictures
def picture(shape, texture):
    """A frame in the colour of the shape around a field in that of the texture."""
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:] = COLOURS[shape]
    pixels[2:14, 2:14] = COLOURS[texture]
    return Image.fromarray(pixels)


def write(folder, pairs, heads=("path", "shape", "texture")):
    folder.mkdir(parents=True)
    table = io.StringIO()
    rows = csv.writer(table)
    rows.writerow(heads)
    for number, (shape, texture) in enumerate(pairs):
        name = f"{number}.png"
        picture(shape or "red", texture or "red").save(folder / name)
        rows.writerow([name, shape, texture][: len(heads)])
    (folder / "labels.csv").write_text(table.getvalue())
    return folder / "labels.csv"


PAIRS = [("red", "green"), ("green", "blue"), ("blue", "red"), ("red", "blue"), ("red", "red")]


def test_pictures_without_a_conflict_are_left_out(tmp_path):
    read = cue_conflict.read(open_images(write(tmp_path / "a", PAIRS)), "a")
    assert read.classes == ("blue", "green", "red")
    assert len(read) == 4
    assert read.left_out == 1
    assert read.shapes.tolist() == [2, 1, 0, 2]
    assert read.textures.tolist() == [1, 0, 2, 0]
    assert len(read.of(["red", "green"])) == 1


@pytest.mark.parametrize(
    ("pairs", "heads", "says"),
    [
        ([("red", "green")], ("path", "shape"), "no column texture"),
        ([("red", "green"), ("red", "")], ("path", "shape", "texture"), "1 picture without a texture"),
        ([("red", "red")], ("path", "shape", "texture"), "the same in all of 1 picture"),
    ],
    ids=["no column", "an empty cell", "no conflict"],
)
def test_wrong_tables_are_refused_in_a_line(tmp_path, pairs, heads, says):
    images = open_images(write(tmp_path / "a", pairs, heads))
    with pytest.raises(ValueError, match=says) as refused:
        cue_conflict.read(images, "a")
    assert "\n" not in str(refused.value)


def test_a_folder_without_a_table_is_refused(tmp_path):
    write(tmp_path / "a", PAIRS).unlink()
    with pytest.raises(ValueError, match="no table: the cue-conflict test reads"):
        cue_conflict.read(open_images(tmp_path / "a"), "a")


# ---------------------------------------------------------------- counting
def test_shares_are_of_the_decisions_for_either_cue(tmp_path):
    conflicts = cue_conflict.read(open_images(write(tmp_path / "a", PAIRS)), "a")
    found = shape_texture.counted(conflicts, np.array([2, 0, 1, -1]), "trained", "classifier", 16)
    assert (found.shape, found.texture, found.n) == (1, 1, 4)
    assert found.share == 0.5
    assert found.either == 0.5
    assert [(c.name, c.n, c.shape, c.texture) for c in found.classes] == [
        ("blue", 1, 0, 0), ("green", 1, 0, 1), ("red", 2, 1, 0)
    ]  # fmt: skip
    assert found.to_json()["chance_either"] == 2 / 16
    none = shape_texture.counted(conflicts, np.full(4, -1), "trained", "classifier", 16)
    assert none.share is None
    assert none.interval95 is None


def test_the_interval_is_that_of_the_decided_pictures_alone():
    n = 823  # of 1,200: the published pictures by EfficientNet-Lite0
    shapes, textures = np.zeros(1200, int), np.ones(1200, int)
    conflicts = cue_conflict.Conflicts(None, ("a", "b"), shapes, textures)  # type: ignore[arg-type]
    answered = np.concatenate([np.zeros(197, int), np.ones(n - 197, int), np.full(1200 - n, -1)])
    found = shape_texture.counted(conflicts, answered, "trained", "classifier", 16)
    assert found.share == pytest.approx(0.2394, abs=5e-5)
    half = 1.96 * (0.2394 * 0.7606 / n) ** 0.5
    assert found.interval95 == pytest.approx((0.2394 - half, 0.2394 + half), abs=0.003)
    judged = shape_texture.ShapeTexture("net", "pictures", (found,))
    assert judged.verdict().startswith("net decides by texture: 24% of its decisions")
    assert json.loads(json.dumps(judged.to_json()))["decisions"][0]["share"] == found.share
    assert judged.table()[1][-1] == ["chance", "16 classes", "50.0%", "12.5%", ""]


# ---------------------------------------------------------------- who decides
SIZE = 16


def model(classes=None, weight=None):
    """A vit-n/4, with a classifier if classes are given."""
    torch.manual_seed(0)
    encoder = backbones.build(name="vit-n/4", image_size=SIZE, channels=3)
    preprocess = Preprocess(
        size=SIZE, channels=3, low=(0.0,) * 3, high=(255.0,) * 3, mean=(0.5,) * 3, std=(0.25,) * 3,
        crop_share=0.875,
    )  # fmt: skip
    if classes is None:
        return Model(encoder, preprocess)
    weight = torch.randn(len(classes), encoder.dim) if weight is None else weight
    return Model(encoder, preprocess, {}, Extras({"classifier.weight": weight}, {"classes": list(classes)}))


def job(of, file, floors=True):
    return Job(
        model=of, images=open_images(file), source=Path(file).parent.name, device=torch.device("cpu"),
        precision=torch.float32, cache=None, seed=0, floors=floors, progress=None, text_reader=None,
    )  # fmt: skip


def photos(folder, names=("blue", "green", "red"), n=4):
    for name in names:
        (folder / name).mkdir(parents=True)
        for i in range(n):
            noise = np.random.default_rng(i).integers(-20, 20, (16, 16, 3))
            pixels = (np.array(COLOURS.get(name, (90, 90, 90))) + noise).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return open_images(folder)


def test_photos_of_colours_make_pictures_decided_by_what_fills_them(tmp_path):
    file = write(tmp_path / "a", PAIRS)
    judged = shape_texture.judge(job(model(), file), "net", photos(tmp_path / "photos"))
    ways = [(d.subject, d.way) for d in judged.decisions]
    assert ways == [(s, w) for s in ("trained", "untrained", "pixels") for w in ("knn", "linear")]
    pixels = judged.decisions[-2]
    assert (pixels.shape, pixels.texture, pixels.n) == (0, 4, 4)  # the field is 9 / 16 of the picture
    assert judged.verdict().startswith("net decides")
    assert any("12 labelled photos of blue, green and red" in note for note in judged.notes)
    assert any("1 picture without a conflict left out" in note for note in judged.notes)


def test_the_own_classifier_decides_by_name_and_its_floor_is_untrained(tmp_path):
    weight = torch.zeros(3, model().encoder.dim)
    own = model(("blue", "green", "red"), weight)  # all classes alike: the first one always
    judged = shape_texture.judge(job(own, write(tmp_path / "a", PAIRS)), "net")
    first, untrained = judged.decisions
    assert (first.way, first.subject, untrained.subject) == ("classifier", "trained", "untrained")
    assert (first.shape, first.texture, first.n) == (1, 2, 4)  # blue is one shape and two textures
    assert any("3 classes decide by name" in note for note in judged.notes)


def test_a_model_that_cannot_decide_is_refused_with_the_remedy(tmp_path):
    file = write(tmp_path / "a", PAIRS)
    with pytest.raises(ValueError, match=r"give photos of these classes \(--labelled PHOTOS\)"):
        shape_texture.judge(job(model(), file), "net")
    with pytest.raises(ValueError, match="--labelled PHOTOS"):
        shape_texture.judge(job(model([f"thing {k}" for k in range(5)]), file), "net")
    with pytest.raises(ValueError, match="at least two classes must have the same names"):
        shape_texture.judge(job(model(), file), "net", photos(tmp_path / "other", ("cow", "pig")))


def test_pictures_of_classes_without_photos_are_left_out_and_counted(tmp_path):
    file = write(tmp_path / "a", PAIRS)
    judged = shape_texture.judge(job(model(), file), "net", photos(tmp_path / "p", ("green", "red", "cow")))
    assert {d.n for d in judged.decisions} == {1}
    assert judged.decisions[0].options == 2
    assert any("3 pictures left out" in note for note in judged.notes)
    assert any("4 labelled photos not used" in note for note in judged.notes)


def test_whole_pictures_are_seen():
    assert shape_texture.whole(model()).preprocess.crop_share == 1.0
