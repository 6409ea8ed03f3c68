"""Several labels an image: from tables, arrays and shards, apart from missing ones, and passed on."""

import io
import json
import pickle
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from omma.core.protocols import Needs
from omma.data.sources import label_sets
from omma.data.sources.collection import ArrayImages, open_images
from omma.data.sources.label_sets import strata, unlabelled
from omma.data.sources.selection import labelled_by
from omma.data.sources.split import train_test
from omma.pretraining import requirements
from omma.pretraining.data import open_source
from omma.pretraining.request import Request, Supervision

NAMES = [f"{k}.png" for k in range(4)]
SETS = [[1, 0, 0], [1, 1, 0], [-1, -1, -1], [0, 0, 0]]  # of cat, dog, owl; owl is in no list below
PIXELS = np.arange(4 * 64 * 3, dtype=np.uint8).reshape(4, 8, 8, 3)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("OMMA_CACHE", str(tmp_path / "cache"))
    for name, pixels in zip(NAMES, PIXELS):
        Image.fromarray(pixels).save(tmp_path / name)
    return tmp_path


def sets_of(images):
    return images.classes, None if images.label_sets is None else images.label_sets.tolist()


CAT_DOG = (("cat", "dog"), [row[:2] for row in SETS])


def csv(column, cells, name="list.csv", paths=NAMES):
    return {name: "\n".join([f"path,{column}", *(f"{path},{cell}" for path, cell in zip(paths, cells))])}


@pytest.mark.parametrize(
    "files",
    [
        csv("labels", ["cat", "cat; dog", "", ";"]),
        csv(" Labels", ["cat", "dog|cat", "", "|"]),
        csv("labels", ["cat", "dog;cat;;dog", "", ";"], "labels.csv"),
        {
            "list.jsonl": "\n".join(
                json.dumps({"path": path} | ({} if value is None else {"labels": value}))
                for path, value in zip(NAMES, [["cat"], ["dog", "cat"], None, []])
            )
        },
    ],
    ids=["semicolons", "bars", "beside the images", "lists in jsonl"],
)
def test_several_names_an_image(folder, files):
    ((name, text),) = files.items()
    (folder / name).write_text(text)
    images = open_images(folder if name == "labels.csv" else folder / name)
    assert images.labels is None
    assert sets_of(images) == CAT_DOG
    assert any("2 classes; none of them: 1 image; unlabelled: 1 image" in note for note in images.notes)
    again = open_images(folder if name == "labels.csv" else folder / name)  # from the cache
    assert (sets_of(again), again.fingerprint) == (CAT_DOG, images.fingerprint)
    assert "2 classes, several labels an image (1 unlabelled)" in images.describe()


@pytest.mark.parametrize("column", ["label", "labels"])
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([["cat"], ["dog", "cat"], None, []], CAT_DOG),
        ([[7], [9, 7], None, []], (("7", "9"), CAT_DOG[1])),
        ([[1, 0, 0], [1, 1, 0], None, [0, 0, 0]], (("0", "1", "2"), SETS)),
        ([[True, False], [True, True], None, [False, False]], (("0", "1"), CAT_DOG[1])),
    ],
)
def test_lists_in_parquet(folder, column, values, expected):
    pq.write_table(pa.table({"path": NAMES, column: values}), folder / "x.parquet")
    assert sets_of(open_images(folder / "x.parquet")) == expected


@pytest.mark.parametrize("column", ["label", "labels"])
@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([["a"], ["b"], None, ["a"]], [0, 1, -1, 0]),
        ([[0, 1], [1, 0], None, [1, 0]], [1, 0, -1, 0]),
        (["a", "b", None, "a"], [0, 1, -1, 0]),
    ],
)
def test_a_label_each_stays_one_label(folder, column, values, labels):
    pq.write_table(pa.table({"path": NAMES, column: values}), folder / "x.parquet")
    images = open_images(folder / "x.parquet")
    assert (images.labels.tolist(), images.label_sets) == (labels, None)


def test_a_separator_in_a_column_label_is_part_of_the_name(folder):
    (folder / "x.csv").write_text(csv("label", ["cat;dog", "cat", "a|b", ""])["list.csv"])
    images = open_images(folder / "x.csv")
    assert (images.classes, images.label_sets) == (("a|b", "cat", "cat;dog"), None)


def test_names_of_classes_beside_labels_stay_the_labels(folder):
    (folder / "x.csv").write_text("path,labels,name\n0.png,3,cat\n1.png,4,dog\n")
    assert open_images(folder / "x.csv").classes == ("cat", "dog")


# ---------------------------------------------------------------- zeros and ones
ONES = "path,split,cat,dog\n0.png,train,1,0\n1.png,test,1.0,True\n2.png,train,,\n3.png,test,0,0\n"


def test_columns_of_zeros_and_ones_are_recognised_and_said(folder):
    (folder / "x.csv").write_text(ONES)
    images = open_images(folder / "x.csv")
    assert sets_of(images) == CAT_DOG
    assert "the columns cat, dog of 0 and 1" in images.notes[0]


@pytest.mark.parametrize(
    "text",
    [
        ONES.replace("dog", "age").replace("True", "30"),
        "path,cat\n0.png,1\n1.png,0\n",
        "path,cat,dog\n0.png,,1\n1.png,,0\n",
    ],
    ids=["another column", "one column", "an empty column"],
)
def test_other_tables_are_not_taken_for_label_sets(folder, text):
    (folder / "x.csv").write_text(text)
    images = open_images(folder / "x.csv")
    assert (images.labels, images.label_sets) == (None, None)


def test_class_folders_go_before_columns_beside_them(folder):
    for k, name in enumerate(NAMES):
        (folder / "ab"[k % 2]).mkdir(exist_ok=True)
        (folder / name).rename(folder / "ab"[k % 2] / name)
    rows = "".join(f'{{"file_name": "{"ab"[k % 2]}/{k}.png", "x": {k % 2}, "y": 1}}\n' for k in range(4))
    (folder / "metadata.jsonl").write_text(rows)
    images = open_images(folder)
    assert (images.classes, images.label_sets) == (("a", "b"), None)
    assert not any("several" in note for note in images.notes)


def test_columns_that_are_named(folder):
    (folder / "x.csv").write_text(
        "path,label,age,cat,dog\n0.png,a,3,1,0\n1.png,a,4,1,1\n2.png,b,5,-1,-1\n3.png,b,6,0,0\n"
    )
    images = open_images(folder / "x.csv")
    chosen = labelled_by(images, ["cat", "dog"])
    assert (chosen.labels, sets_of(chosen)) == (None, CAT_DOG)
    assert images.label_sets is None
    assert "-1 counts as not known" in chosen.notes[-1]
    with pytest.raises(ValueError, match=r"column age: row 1 holds '3'; labels are 0, 1 or nothing"):
        labelled_by(images, ["cat", "age"])
    with pytest.raises(
        ValueError, match=r"--label-columns bird: .*no such column; choose among label, age, cat, dog"
    ):
        labelled_by(images, ["bird"])


def test_without_zeros_minus_one_is_no(folder):
    (folder / "x.csv").write_text("path,smiling,male\n0.png,1,-1\n1.png,1,1\n2.png,,\n3.png,-1,-1\n")
    chosen = labelled_by(open_images(folder / "x.csv"), ["smiling", "male"])
    assert sets_of(chosen)[1] == CAT_DOG[1]


# ---------------------------------------------------------------- arrays and shards
def test_multi_hot_arrays(folder):
    np.savez(folder / "x.npz", x=PIXELS, y=np.array(SETS).clip(0))
    images = open_images(folder / "x.npz")
    assert sets_of(images) == (("0", "1", "2"), np.array(SETS).clip(0).tolist())
    named = ArrayImages(PIXELS, np.array(SETS), classes=("cat", "dog", "owl"))
    assert sets_of(named) == (("cat", "dog", "owl"), SETS)
    one_hot = np.eye(3, dtype=int)[[0, 1, 2, 0]]
    np.savez(folder / "y.npz", x_train=PIXELS, y_train=np.array(SETS).clip(0), x_test=PIXELS, y_test=one_hot)
    assert sets_of(open_images(folder / "y.npz"))[1][4:] == one_hot.tolist()
    np.savez(folder / "z.npz", x_train=PIXELS, y_train=[0, 1, 2, 0], x_test=PIXELS, y_test=one_hot)
    assert open_images(folder / "z.npz").labels.tolist() == [0, 1, 2, 0] * 2


def test_lists_in_shards(folder):
    with tarfile.open(folder / "a-0.tar", "w") as tar:
        for name, value in zip(NAMES, [["cat"], ["dog", "cat"], None, []]):
            for member, data in (
                (name, (folder / name).read_bytes()),
                (name.replace("png", "json"), json.dumps({"labels": value}).encode()),
            ):
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    assert sets_of(open_images(f"{folder}/a-*.tar")) == CAT_DOG


# ---------------------------------------------------------------- what becomes of them
def test_they_survive_subsets_and_pickling(folder):
    images = ArrayImages(PIXELS, np.array(SETS))
    assert images.subset(np.array([3, 1])).label_sets.tolist() == [SETS[3], SETS[1]]
    assert pickle.loads(pickle.dumps(images)).label_sets.tolist() == SETS
    other = ArrayImages(PIXELS, np.array(SETS)[:, ::-1])
    assert images.fingerprint != other.fingerprint


def test_rows_that_contradict_each_other_count_as_unlabelled(folder):
    paths = [*NAMES, "1.png", "0.png"]
    cells = ["cat", "cat;dog", "", ";", "dog", "cat"]
    for name in ("list.csv", "labels.csv"):
        (folder / name).write_text(csv("labels", cells, name, paths)[name])
        images = open_images(folder if name == "labels.csv" else folder / name)
        labelled = dict(zip(map(images.path, range(len(images))), images.label_sets.tolist()))
        assert labelled == {"0.png": [1, 0], "1.png": [-1, -1], "2.png": [-1, -1], "3.png": [0, 0]}
        assert any("1 image has rows with different labels" in note for note in images.notes)


def test_one_row_of_several_labels_after_one_of_a_single_label(folder):
    rows = [{"file_name": "0.png", "label": ["a"]}, {"file_name": "0.png", "label": ["a", "b"]}]
    rows += [{"file_name": "1.png", "label": ["b"]}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    images = open_images(folder)
    assert images.labels.tolist() == [-1, 1, -1, -1]


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ([[["a"]], [["b"]], None, None], r"column labels holds large_list<.*>, no text or number"),
        ([{"id": 1}] * 4, "column labels holds lists or records"),
        ([None, None, None, ["nan", "nan"]], "counts as none|no label"),
    ],
)
def test_tables_that_cannot_be_used_are_said(folder, values, why):
    pq.write_table(pa.table({"path": NAMES, "labels": values}), folder / "x.parquet")
    images = open_images(folder / "x.parquet")
    assert (images.labels, images.label_sets) == (None, None)
    with pytest.raises(ValueError, match=why):
        train_test(images)


def test_free_texts_are_no_classes(folder, monkeypatch):
    monkeypatch.setattr(label_sets, "_MOST", 10)
    (folder / "x.csv").write_text(csv("labels", ["a;b", "c;d", "e", "f"])["list.csv"])
    images = open_images(folder / "x.csv")
    assert images.label_sets is None
    assert "6 different names for 4 images are texts, no classes" in images.notes[0]


def test_a_column_named_twice_is_refused(folder):
    (folder / "x.csv").write_text("path,labels,labels\n0.png,a,b\n")
    with pytest.raises(ValueError, match="2 columns are named `labels`; remove or rename all but one"):
        open_images(folder / "x.csv")


def test_strata_are_the_rarest_class():
    sets = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0], [-1, -1, -1], [1, -1, 0]], np.int8)
    assert strata(sets).tolist() == [1, 0, 3, -1, 0]
    assert unlabelled(sets).tolist() == [False, False, False, True, False]


def test_a_split_has_each_class_on_both_sides():
    sets = np.zeros((100, 3), np.int8)
    sets[:, 0], sets[:10, 1], sets[90:, 2], sets[50] = 1, 1, 1, -1
    train, test, _ = train_test(ArrayImages(np.zeros((100, 8, 8, 3), np.uint8), sets))
    assert 50 not in {*train, *test}
    assert sets[train].max(0).tolist() == sets[test].max(0).tolist() == [1, 1, 1]


def test_a_method_of_one_label_refuses_them(folder, monkeypatch):
    request = Request("images", method="supervised")
    with pytest.raises(
        ValueError, match=r"images: its images have several labels each .*supervised needs one"
    ):
        requirements.refuse(request, classes=("a", "b"), several=True, captions=False)
    monkeypatch.setattr(requirements, "needs_of", lambda *_: Needs(labels=True, label_sets=True))
    requirements.refuse(request, classes=("a",), several=True, captions=False)


def test_columns_that_are_named_reach_a_run(folder):
    (folder / "x.csv").write_text("path,age,cat,dog\n0.png,3,1,0\n1.png,4,1,1\n2.png,5,,\n3.png,6,0,0\n")
    supervision = Supervision(label_columns=("cat", "dog"))
    request = Request(folder / "x.csv", method="finetune", supervision=supervision)
    assert sets_of(open_source(request)) == CAT_DOG
    with pytest.raises(ValueError, match="finetune learns from labels, and these images have none"):
        open_source(Request(folder / "x.csv", method="finetune"))
