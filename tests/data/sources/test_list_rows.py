"""Tables whose rows hold images: Parquet, and Arrow files as `datasets.Dataset.save_to_disk` writes them."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest
from PIL import Image

from omma.data.sources import collection

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 9, 7, 3), dtype=np.uint8)
LABELS = [k % 3 for k in range(12)]
CLASSES = ["ant", "bee", "cow"]
FEATURES = {
    "image": {"_type": "Image"},
    "label": {"names": CLASSES, "_type": "ClassLabel"},
    "caption": {"dtype": "string", "_type": "Value"},
}


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def table(rows=range(12), features=FEATURES, **columns) -> pa.Table:
    cells = [{"bytes": png(PIXELS[k]), "path": f"{k}.png"} for k in rows]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    every = {
        "image": pa.array(cells, kind),
        "label": pa.array([LABELS[k] for k in rows], pa.int64()),
        "caption": [f"picture {k}" for k in rows],
    }
    made = pa.table(every | columns)
    return made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def stream(file, rows) -> None:
    with ipc.new_stream(str(file), rows.schema) as writer:
        writer.write_table(rows, max_chunksize=5)


def saved(folder) -> None:
    """The files that `Dataset.save_to_disk` leaves."""
    folder.mkdir(parents=True)
    stream(folder / "data-00000-of-00002.arrow", table(range(7)))
    stream(folder / "data-00001-of-00002.arrow", table(range(7, 12)))
    (folder / "dataset_info.json").write_text("{}")
    (folder / "state.json").write_text("{}")


@pytest.fixture
def sources(tmp_path):
    saved(tmp_path / "saved")
    (tmp_path / "hub" / "data").mkdir(parents=True)
    (tmp_path / "hub" / "README.md").write_text("a card")
    for name, rows in (("train", range(8)), ("test", range(8, 12))):
        file = tmp_path / "hub" / "data" / f"{name}-00000-of-00001.parquet"
        pq.write_table(table(rows), file, row_group_size=3)
    pq.write_table(table(), tmp_path / "one.parquet", row_group_size=5)
    return tmp_path


@pytest.mark.parametrize("name", ["saved", "one.parquet", "saved/*.arrow"])
def test_images_labels_and_captions(sources, name):
    images = collection.open_images(sources / name)
    assert (len(images), images.classes) == (12, tuple(CLASSES))
    assert images.labels.tolist() == LABELS
    assert images.text.to_pylist()[11] == ["picture 11"]
    for i in (0, 6, 7, 11):
        assert np.array_equal(images.read(i), PIXELS[i])
    assert images.path(7).endswith("[0]" if "saved" in name else "[7]")


def test_parts_by_the_names_of_files(sources):
    images = collection.open_images(sources / "hub")
    order = [*range(8, 12), *range(8)]  # test-... before train-...
    assert images.splits.tolist() == ["test"] * 4 + ["train"] * 8
    assert all(np.array_equal(images.read(i), PIXELS[k]) for i, k in enumerate(order))


def test_parts_of_a_dictionary_of_data_sets(tmp_path):
    for part in ("train", "validation"):
        saved(tmp_path / part)
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "validation"]}')
    assert collection.open_images(tmp_path).splits.tolist() == ["train"] * 12 + ["test"] * 12


def test_the_same_rows_again_have_the_same_fingerprint(sources):
    first, again = (collection.open_images(sources / "one.parquet").fingerprint for _ in range(2))
    pq.write_table(table(range(11, -1, -1)), sources / "one.parquet")
    assert first == again != collection.open_images(sources / "one.parquet").fingerprint


def test_a_row_without_an_image_is_bad(tmp_path):
    rows = table(range(4))
    cells = [*rows["image"].to_pylist()[:3], None]
    rows = rows.set_column(0, rows.schema.field("image"), pa.array(cells, rows.schema.field("image").type))
    pq.write_table(rows, tmp_path / "a.parquet")
    with pytest.raises(collection.BadImage, match="no image in this row"):
        collection.open_images(tmp_path / "a.parquet").read(3)


def test_two_columns_of_classes_are_no_labels_but_parts(tmp_path):
    names = {"names": CLASSES, "_type": "ClassLabel"}
    rows = table(features={"fine": names, "coarse": names}, fine=LABELS, coarse=LABELS).drop_columns("label")
    pq.write_table(rows, tmp_path / "a.parquet")
    images = collection.open_images(tmp_path / "a.parquet")
    assert images.labels is None
    assert images.columns["coarse"].to_pylist()[:3] == CLASSES
    assert any("fine, coarse none is named label" in note for note in images.notes)


def test_unknown_labels(tmp_path):
    pq.write_table(table(label=pa.array([-1, None, *LABELS[2:]], pa.int64())), tmp_path / "a.parquet")
    assert collection.open_images(tmp_path / "a.parquet").labels.tolist() == [-1, -1, *LABELS[2:]]


def test_a_damaged_file_is_refused_in_a_line(sources):
    file = sources / "hub" / "data" / "train-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"train-00000-of-00001\.parquet: cannot be read") as error:
        collection.open_images(sources / "hub")
    assert "\n" not in str(error.value)


def test_a_table_of_paths_is_a_manifest_as_before(tmp_path):
    Image.fromarray(PIXELS[0]).save(tmp_path / "0.png")
    pq.write_table(pa.table({"path": ["0.png"]}), tmp_path / "a.parquet")
    assert np.array_equal(collection.open_images(tmp_path / "a.parquet").read(0), PIXELS[0])
