"""`omma clean`: planted faults in the table, lists and copies that leave what is there, safe pages."""

import os
import subprocess
import sys

import numpy as np
import pyarrow.csv as pacsv
import pytest
import torch
from PIL import Image

import omma
from omma import backbones, cli, weights
from omma.core.protocols import Preprocess
from omma.curation import copied
from omma.curation.duplicates import rule
from omma.curation.findings import KINDS
from omma.data.sources.collection import ArrayImages, open_images

CPU = {"device": "cpu", "precision": "fp32"}
PREPROCESS = Preprocess(
    size=16, channels=3, low=(0.0,) * 3, high=(255.0,) * 3, mean=(0.5,) * 3, std=(0.25,) * 3
)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Few pairs and copies to calibrate the search for duplicates on: its own tests are elsewhere."""
    monkeypatch.setattr(rule, "RANDOM", 40)
    monkeypatch.setattr(rule, "ROUNDS", 1)
    monkeypatch.setattr(copied, "MADE", 1)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    encoder = backbones.build(name="vit-n/8", image_size=16, depth=2)
    return weights.save(tmp_path_factory.mktemp("runs") / "x", encoder, PREPROCESS, {})


def picture(seed, side=48):
    """Blotches of colour that no other seed has."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    smooth = np.asarray(small.resize((side, side), Image.Resampling.BICUBIC), np.int16)
    return Image.fromarray((smooth + rng.integers(-25, 25, smooth.shape)).clip(0, 255).astype(np.uint8))


def plant(root):
    """6 train and 4 test images of two classes, and faults that need neither a model nor a comparison."""
    for number in (*range(6), *range(24, 28)):
        part = "test" if number >= 24 else "train"
        place = root / part / ("cat" if number % 2 else "dog")
        place.mkdir(parents=True, exist_ok=True)
        picture(number).save(place / f"{number:02}.png")
    cats, tests = root / "train" / "cat", root / "test" / "cat"
    Image.new("RGB", (48, 48), (90, 90, 90)).save(cats / "blank.png")
    Image.new("RGB", (48, 48), (70, 70, 70)).save(tests / "blank.png")
    (cats / "torn.png").write_bytes((cats / "01.png").read_bytes()[:200])
    (cats / "again.png").write_bytes((cats / "03.png").read_bytes())
    (cats / "leaked.png").write_bytes((tests / "25.png").read_bytes())
    (root / "train" / "dog" / "other.png").write_bytes((cats / "05.png").read_bytes())  # under two labels
    return root


FAULTS = {
    ("train/cat/torn.png", "broken"),
    ("train/cat/blank.png", "blank"),
    ("test/cat/blank.png", "blank"),
    ("train/cat/leaked.png", "leakage"),
}


@pytest.fixture
def folder(tmp_path):
    return plant(tmp_path / "images")


def rows(file):
    return pacsv.read_csv(file).to_pylist()


def tree(root):
    return {str(f.relative_to(root)): f.read_bytes() for f in sorted(root.rglob("*")) if f.is_file()}


def test_planted_faults_are_found_without_a_model_and_sorted_by_importance(folder, tmp_path):
    out = tmp_path / "findings.csv"
    done = omma.clean(folder, out)
    found = rows(out)
    assert {(row["path"], row["finding"]) for row in found} >= FAULTS
    copies = {frozenset((row["path"], row["related"])) for row in found if row["finding"] == "duplicate"}
    assert copies >= {
        frozenset(("train/cat/03.png", "train/cat/again.png")),
        frozenset(("train/cat/05.png", "train/dog/other.png")),
    }
    two = next(row for row in found if {row["path"], row["related"]} & {"train/dog/other.png"})
    assert "labels differ" in two["detail"]
    assert "the same file" in two["detail"]
    order = [list(KINDS).index(row["finding"]) for row in found]
    assert order == sorted(order)
    assert {row["split"] for row in found if row["path"].startswith("test")} == {"test"}
    assert {row["label"] for row in found} <= {"cat", "dog"}
    leak = next(row for row in found if row["finding"] == "leakage")
    assert leak["related"] == "test/cat/25.png"
    assert done.counts["broken"] == 1
    assert done.flagged == len({row["path"] for row in found})
    assert any("without --model" in note for note in done.notes)


def test_lists_leave_the_test_part_whole_and_are_read_as_images(folder, tmp_path):
    before = tree(folder)
    out = tmp_path / "lists" / "f.csv"
    done = omma.clean(folder, out, apply="list", remove=[*KINDS])
    assert tree(folder) == before
    kept = open_images(out.with_name("f-keep.csv"))
    names = {os.path.relpath(kept.path(i), folder) for i in range(len(kept))}
    gone = {os.path.relpath(row["path"], folder) for row in rows(out.with_name("f-remove.csv"))}
    assert names | gone == set(before)
    assert not names & gone
    assert not any(name.startswith("test") for name in gone)
    assert {"train/cat/torn.png", "train/cat/blank.png", "train/cat/leaked.png"} <= gone
    assert done.removed == len(gone)
    assert kept.classes == ("cat", "dog")
    assert set(kept.splits) == {"train", "test"}
    for i in range(len(kept)):
        assert kept.read(i).shape == (48, 48, 3)
        assert f"/{kept.classes[kept.labels[i]]}/" in kept.path(i)


def test_lists_keep_what_a_table_knows(tmp_path):
    for number in range(4):
        picture(number).save(tmp_path / f"{number}.png")
    text = "file_name,label,domain,split,caption\n"
    for n in range(4):
        text += f"{n}.png,{'ab'[n % 2]},field {n},{('train', 'val')[n == 3]},hello {n}\n"
    (tmp_path / "t.csv").write_text(text)
    omma.clean(tmp_path / "t.csv", tmp_path / "deep" / "f.csv", apply="list")
    kept = open_images(tmp_path / "deep" / "f-keep.csv")
    assert kept.classes == ("a", "b")
    assert kept.columns["domain"].to_pylist() == [f"field {n}" for n in range(4)]
    assert kept.splits.tolist() == ["train"] * 3 + ["test"]
    assert kept.text.to_pylist() == [[f"hello {n}"] for n in range(4)]


def test_only_the_findings_that_are_named_are_left_out(folder, tmp_path):
    omma.clean(folder, tmp_path / "f.csv", apply=["list"], remove=["broken"])
    (gone,) = rows(tmp_path / "f-remove.csv")
    assert gone["path"] == str(folder / "train/cat/torn.png")
    assert gone["finding"] == "broken"


def test_copies_leave_sources_and_keep_labels_and_splits(folder, tmp_path):
    before, kept = tree(folder), tmp_path / "kept"
    done = omma.clean(folder, tmp_path / "f.csv", apply=("copy", str(kept)))
    assert tree(folder) == before
    images = open_images(kept)
    assert len(images) == done.images - done.removed
    copied = tree(kept)
    assert {f: copied[f] for f in copied if f.endswith(".png")}.items() <= before.items()
    assert "train/cat/torn.png" not in copied
    assert "test/cat/blank.png" in copied  # in the test part: reported, and kept
    assert (images.splits == "test").sum() == 5
    assert images.classes == ("cat", "dog")


def test_copies_of_an_archive_and_of_several_labels(tmp_path):
    import zipfile

    for number in range(4):
        picture(number).save(tmp_path / f"{number}.png")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for number in range(4):
            archive.write(tmp_path / f"{number}.png", f"{number}.png")
        table = "path,labels,caption\n0.png,a;b,one\n1.png,a,two\n2.png,,three\n3.png,b;c,\n"
        archive.writestr("labels.csv", table)
    done = omma.clean(tmp_path / "a.zip", tmp_path / "f.csv", apply=["copy", tmp_path / "kept"])
    images = open_images(tmp_path / "kept")
    assert done.removed == 0
    assert images.label_sets is not None
    assert images.label_sets.tolist() == [[1, 1, 0], [1, 0, 0], [-1, -1, -1], [0, 1, 1]]
    assert images.text is not None
    assert images.text.to_pylist()[:3] == [["one"], ["two"], ["three"]]
    listed = omma.clean(tmp_path / "a.zip", tmp_path / "g.csv", apply="list")
    assert any("unpack the archive" in note for note in listed.notes)
    assert [row["path"] for row in rows(tmp_path / "g-keep.csv")] == ["0.png", "1.png", "2.png", "3.png"]


def test_with_a_model_outliers_and_wrong_labels_are_looked_for(model, tmp_path):
    labels = np.arange(28) % 2
    pixels = np.stack([np.asarray(picture(number, 24), np.float64) for number in range(28)])
    pixels[..., 0] = 0.3 * pixels[..., 0] + 170 * labels[:, None, None]  # red, or not
    given = labels.copy()
    given[[4, 9]] = 1 - given[[4, 9]]
    images = ArrayImages(pixels.astype(np.uint8), given, ("blue", "red"))
    page = tmp_path / "p.html"
    done = omma.clean(images, tmp_path / "f.jsonl", model=model, page=page, **CPU)
    wrong = {each.row: each for each in done.findings if each.kind == "mislabelled"}
    assert set(wrong) >= {4, 9}
    assert (wrong[4].given, wrong[4].suggested) == ("red", "blue")
    assert wrong[4].probability > 0.5
    assert given[wrong[4].related_row] == 0  # what it looks like
    assert {"outlier", "mislabelled", "duplicate"} <= set(done.thresholds)
    text = page.read_text()
    assert "Mislabelled" in text
    assert "red" in text


def test_copies_of_another_collection_are_leakage(folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "seen.png").write_bytes((folder / "train/dog/00.png").read_bytes())
    picture(99).save(other / "new.png")
    done = omma.clean(folder, tmp_path / "f.csv", against=other, page=tmp_path / "p.html")
    leaks = {row["path"]: row["related"] for row in rows(tmp_path / "f.csv") if row["finding"] == "leakage"}
    assert leaks == {"train/dog/00.png": "seen.png", "train/cat/leaked.png": "test/cat/25.png"}
    assert done.counts["leakage"] == 2


def test_pages_escape_names_and_control_characters(tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    hostile = ["<script>alert(1)<&script>.png", 'a" onload="x.png', "b\x1b[31m\n.png", "=cmd.png"]
    for number, name in enumerate(hostile):
        Image.new("RGB", (40, 40), (number, 40, 40)).save(root / name.replace("/", "&"))
    for number in range(6):
        picture(number).save(root / f"{number}.png")
    page, out = tmp_path / "p.html", tmp_path / "f.csv"
    omma.clean(root, out, page=page, apply="list")
    text = page.read_text()
    assert "<script" not in text
    assert 'onload="x' not in text
    assert "\x1b" not in text
    assert "&lt;script&gt;" in text
    assert {row["path"] for row in rows(out) if row["finding"] == "blank"} == set(hostile)
    kept = open_images(tmp_path / "f-keep.csv")
    assert len(kept) == 6


@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl"])
def test_a_clean_collection_gives_an_empty_table_with_its_columns(tmp_path, ending):
    images = ArrayImages(np.stack([np.asarray(picture(n)) for n in range(8)]))
    out = tmp_path / f"f.{ending}"
    done = omma.clean(images, out, page=tmp_path / "p.html")
    assert (done.counts, done.flagged, done.removed) == ({}, 0, None)
    assert out.exists()
    if ending == "csv":
        assert out.read_text().startswith('"path","finding","score","detail","related"')
    assert "Nothing found in 8 images" in (tmp_path / "p.html").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out": "f.txt"}, "name the table"),
        ({"apply": "delete"}, "deletes and moves no images"),
        ({"apply": ["copy"]}, "give `list`, or `copy DIR`"),
        ({"apply": ["copy", "."]}, "not empty"),
        ({"remove": ["ugly"]}, "--remove ugly: no such finding; choose among broken"),
        ({"model": "nowhere"}, "nowhere"),
        ({"against": "nowhere"}, "nowhere"),
        ({"page": "."}, "is a folder"),
    ],
    ids=["ending", "delete", "copy-where", "copy-there", "remove", "model", "against", "page"],
)
def test_what_cannot_be_done_is_refused_in_a_line_before_anything_is_written(
    folder, tmp_path, monkeypatch, options, message
):
    monkeypatch.chdir(folder)
    before = tree(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        omma.clean(**{"images": folder, "out": "f.csv", **options})
    assert "\n" not in str(error.value)
    assert tree(tmp_path) == before


def test_arrays_cannot_be_copied(tmp_path):
    images = ArrayImages(np.zeros((3, 8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match=r"--apply copy .*arrays, not files"):
        omma.clean(images, tmp_path / "f.csv", apply=["copy", tmp_path / "c"])


def test_nothing_readable_is_refused(tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    picture(0).save(root / "0.png")
    images = open_images(root)
    (root / "0.png").write_bytes(b"no")
    with pytest.raises(ValueError, match="none of 1 image can be read"):
        omma.clean(images, tmp_path / "f.csv")


def test_the_command_prints_counts_and_where_things_are(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)  # which pytest-xdist sets
    out = str(tmp_path / "f.csv")
    with pytest.raises(SystemExit) as end:
        cli.main(["clean", str(folder), "--out", out, "--apply", "list", "--remove", "broken", "blank"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert "1 broken" in printed
    assert "left out: 2 images; nothing was deleted" in printed
    assert "f-keep.csv" in printed


def test_an_error_is_one_line_and_status_2(tmp_path):
    command = [sys.executable, "-m", "omma", "clean", str(tmp_path), "--out", "x.txt"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
