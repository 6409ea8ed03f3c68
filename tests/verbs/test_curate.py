"""`omma curate`: a list that pretrain opens, whatever the pool, complements what is labelled, and resumes."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from omma import backbones, weights
from omma.cli import main
from omma.core.protocols import Extras, Preprocess
from omma.curation.parts import Parts
from omma.data.sources.collection import ArrayImages, open_images
from omma.ops.nearest import unit
from omma.verbs.curate import curate
from omma.verbs.embed import embed

PREPROCESS = Preprocess(
    size=16, channels=3, low=(0.0,) * 3, high=(255.0,) * 3, mean=(0.5,) * 3, std=(0.25,) * 3
)
SIZES = {"red": 40, "green": 6, "blue": 6}
ANY = {"device": "cpu", "precision": "fp32", "similarity": 1.0}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("runs") / "x"
    encoder = backbones.build(name="vit-n/4", image_size=16)
    head = {"classifier.weight": torch.randn(3, encoder.dim), "classifier.bias": torch.zeros(3)}
    weights.save(folder, encoder, PREPROCESS, {"method": "mae"}, Extras(head, {"classes": [*SIZES]}))
    return folder


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """A folder for each colour, with noise."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("pool")
    for channel, (name, n) in enumerate(SIZES.items()):
        (folder / name).mkdir()
        for i in range(n):
            pixels = rng.integers(0, 60, (16, 16, 3), dtype=np.uint8)
            pixels[..., channel] += 150
            Image.fromarray(pixels).save(folder / name / f"{i:02}.png")
    return folder


@pytest.fixture(scope="module")
def table(model, pool, tmp_path_factory):
    out = tmp_path_factory.mktemp("table") / "pool.parquet"
    embed(model, pool, out, device="cpu", precision="fp32")
    return out


@pytest.mark.parametrize("ending", [".csv", ".parquet", ".jsonl"])
def test_the_list_is_a_manifest_of_the_chosen(model, pool, tmp_path, ending):
    done = curate(model, pool, 12, tmp_path / "deep" / f"list{ending}", levels=(6, 3), **ANY)
    listed = open_images(done.path)
    assert len(listed) == done.rows == 12
    assert done.pool == 52
    assert tuple(listed.path(i) for i in range(12)) == done.paths
    assert listed.read(0).shape == (16, 16, 3)
    whole = open_images(pool)
    expected = [whole.classes[whole.labels[i]] for i in done.indices]
    assert [listed.classes[label] for label in listed.labels] == expected
    assert listed.skipped == []
    assert not listed.notes
    assert set(listed.columns.column_names) >= {"row", "cluster_1", "cluster_2", "weight", "why"}
    assert done.classes_after > done.classes_before
    assert any("effective number of classes" in note for note in done.notes)
    assert not list(done.path.parent.glob(".*"))  # the work folder is gone


def test_a_table_of_vectors_gives_the_same_list(model, pool, table, tmp_path):
    options = {"levels": (6, 3), "similarity": 1.0, "device": "cpu"}
    of_images = curate(model, pool, 12, tmp_path / "a.csv", precision="fp32", **options)
    of_table = curate(None, table, 12, tmp_path / "b.csv", **options)
    assert of_images.paths == of_table.paths
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "b.csv").read_text()


def test_a_table_of_another_model_is_refused(table, pool, tmp_path):
    torch.manual_seed(1)
    other = tmp_path / "other"
    weights.save(other, backbones.build(name="vit-n/4", image_size=16), PREPROCESS, {})
    with pytest.raises(ValueError, match=r"made by another model than .*other") as error:
        curate(other, table, 5, tmp_path / "a.csv", **ANY)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("strategy", ["coreset", "typical", "margin", "entropy", "random"])
def test_strategies_by_name(model, pool, tmp_path, strategy):
    done = curate(model, pool, 7, tmp_path / "a.csv", strategy=strategy, **ANY)
    assert len(set(done.paths)) == 7
    again = curate(model, pool, 7, tmp_path / "b.csv", strategy=strategy, **ANY)
    assert done.paths == again.paths


def test_near_copies_and_an_evaluation_set_are_left_out(model, pool, tmp_path):
    images = open_images(pool)
    twice = ArrayImages(np.stack([images.read(i) for i in [*range(10), *range(10)]]))
    options = {"device": "cpu", "precision": "fp32", "strategy": "random"}
    done = curate(model, twice, 20, tmp_path / "a.csv", similarity=0.99999, **options)
    assert set(done.indices) <= set(range(10))
    assert any(note.startswith(f"{20 - done.rows} near-copies left out") for note in done.notes)
    options |= {"similarity": 1.0}
    done = curate(
        model, pool, 52, tmp_path / "b.csv", exclude=pool / "green", exclude_similarity=0.99999, **options
    )
    assert not any("/green/" in path for path in done.paths)
    with pytest.raises(ValueError, match="no image is left to choose from; 52 images left out"):
        curate(model, pool, 5, tmp_path / "c.csv", exclude=pool, exclude_similarity=0.9, **options)


def test_a_seed_set_brings_what_is_like_it(model, pool, tmp_path):
    seeds = ArrayImages(np.stack([open_images(pool / "blue").read(i) for i in range(2)]))
    done = curate(model, pool, 4, tmp_path / "a.csv", seed_set=seeds, **ANY)
    assert all("/blue/" in path for path in done.paths)
    with pytest.raises(ValueError, match="strategy=coreset: a seed set has a way of its own"):
        curate(model, pool, 4, tmp_path / "a.csv", seed_set=seeds, strategy="coreset", **ANY)


def test_labelled_images_are_complemented(model, pool, tmp_path):
    done = curate(model, pool, 6, tmp_path / "a.csv", strategy="coreset", labelled=pool / "red", **ANY)
    assert not any("/red/" in path for path in done.paths)
    images = open_images(pool)
    partly = ArrayImages(
        np.stack([images.read(i) for i in range(52)]),
        labels=np.where(images.labels == 0, -1, 0), classes=("known",),
    )  # fmt: skip
    done = curate(model, partly, 6, tmp_path / "b.csv", strategy="typical", **ANY)
    assert (images.labels[done.indices] == 0).all()
    assert any(note.startswith("46 images labelled already") for note in done.notes)
    done = curate(model, partly, 50, tmp_path / "c.csv", strategy="random", **ANY)  # these train on all
    assert (images.labels[done.indices] != 0).any()


def test_several_labels_an_image(model, pool, tmp_path):
    rows = ["path,labels", "red/00.png,warm;bright", "green/00.png,bright", "blue/00.png,", "red/01.png,warm"]
    (pool / "several.csv").write_text("\n".join(rows))
    done = curate(model, pool / "several.csv", 4, tmp_path / "a.csv", **ANY)
    listed = open_images(done.path)
    assert listed.classes == ("bright", "warm")
    np.testing.assert_array_equal(listed.label_sets, open_images(pool / "several.csv").label_sets)
    assert any("of 2 in the pool" in note for note in done.notes)
    (pool / "several.csv").unlink()


def test_a_pool_that_is_no_files_says_how_to_get_them(model, tmp_path):
    array = np.random.default_rng(0).integers(0, 255, (9, 16, 16, 3), dtype=np.uint8)
    done = curate(model, ArrayImages(array), 3, tmp_path / "a.csv", **ANY)
    assert any("--copy DIR" in note for note in done.notes)


def test_chosen_files_are_copied_and_shown(model, pool, tmp_path):
    copies, page = tmp_path / "chosen", tmp_path / "page.html"
    done = curate(model, pool, 9, tmp_path / "a.csv", levels=(6, 3), copy=copies, page=page, **ANY)
    assert len(open_images(copies)) == 9
    text = page.read_text()
    assert text.count("<img") == 9
    assert "of this cluster: red" in text
    assert str(done.pool) in text


def test_a_killed_run_continues_to_the_same_list(model, pool, tmp_path, monkeypatch):
    options = {**ANY, "similarity": 0.99999, "levels": (20, 4)}
    whole = curate(model, pool, 12, tmp_path / "whole.csv", **options)
    real, left = Parts.save, 6

    def save(self, name, **arrays):
        nonlocal left
        real(self, name, **arrays)
        left -= 1
        if left == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(Parts, "save", save)
    with pytest.raises(KeyboardInterrupt):
        curate(model, pool, 12, tmp_path / "list.csv", **options)
    assert not (tmp_path / "list.csv").exists()
    kept = list((tmp_path / ".list.csv.parts").rglob("*.npz"))
    assert kept
    monkeypatch.setattr(Parts, "save", real)
    monkeypatch.setattr("omma.curation.repeats._first_of_each", None)  # it is done, and not done again
    assert curate(model, pool, 12, tmp_path / "list.csv", **options).paths == whole.paths
    assert not (tmp_path / ".list.csv.parts").exists()


def test_a_work_folder_serves_another_size(table, tmp_path, monkeypatch):
    options = {"levels": (6, 3), "similarity": 1.0, "device": "cpu", "work": tmp_path / "work"}
    curate(None, table, 12, tmp_path / "a.csv", **options)
    monkeypatch.setattr("omma.curation.hierarchical._clustered", None)
    assert curate(None, table, 20, tmp_path / "b.csv", **options).rows == 20


def test_vectors_that_are_not_finite_and_other_mistakes_are_one_line(pool, tmp_path):
    rows = unit(np.random.default_rng(0).normal(size=(30, 4)))
    rows[7, 2] = np.nan
    columns = {
        "path": [f"{i}.jpg" for i in range(30)],
        "vector": pa.array(rows.tolist(), pa.list_(pa.float32())),
    }
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    np.save(tmp_path / "v.npy", np.nan_to_num(rows))
    cases = [
        ((None, tmp_path / "t.parquet", 5), {}, r"row 7 \(7.jpg\) holds numbers that are not finite"),
        ((None, tmp_path / "v.npy", 0), {}, "size=0: must be at least 1"),
        ((None, tmp_path / "v.npy", 5), {"similarity": 2.0}, "similarity=2.0: must be a cosine"),
        ((None, tmp_path / "v.npy", 5), {"levels": (3, 30)}, "levels 3,30: give numbers of clusters"),
        ((None, tmp_path / "v.npy", 5), {"strategy": "best"}, "strategy='best': choose 'balanced'"),
        ((None, tmp_path / "v.npy", 5), {"strategy": "margin"}, "holds vectors alone"),
        ((None, tmp_path / "v.npy", 5), {"exclude": pool}, "these are images, not vectors"),
        ((None, pool, 5), {}, "these are images, not vectors: give the MODEL that embeds them"),
    ]
    for arguments, options, why in cases:
        with pytest.raises(ValueError, match=why) as error:
            curate(*arguments, tmp_path / "out.csv", device="cpu", **options)
        assert "\n" not in str(error.value)
        assert not (tmp_path / "out.csv").exists()
    with pytest.raises(ValueError, match="name the table"):
        curate(None, tmp_path / "v.npy", 5, tmp_path / "out.txt")
    np.save(tmp_path / "wide.npy", np.eye(5))
    with pytest.raises(ValueError, match="vectors of 5 dimensions, and the pool's have 4"):
        curate(
            None, tmp_path / "v.npy", 5, tmp_path / "out.csv", labelled=tmp_path / "wide.npy", device="cpu"
        )


def test_command(table, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["curate", "-", str(table), "--size", "10", "--device", "cpu"]
    with pytest.raises(SystemExit) as end:
        main([*words, "--levels", "6,3", "--out", "list.csv"])
    said = capsys.readouterr().out
    assert end.value.code == 0
    assert "10 images of 52 in list.csv" in said
    assert "clusters, the finest level first: 6, 3" in said
    with pytest.raises(SystemExit) as end:
        main([*words, "--levels", "six", "--out", "b.csv"])
    assert end.value.code == 2
    assert "--levels six: give whole numbers" in capsys.readouterr().err
