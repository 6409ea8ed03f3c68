"""Which images belong to one sequence, by columns of a table or by folders."""

import numpy as np
import pytest
from PIL import Image

from omma.data.sources import groups, sequences
from omma.data.sources.collection import open_images


def save(folder, names):
    rng = np.random.default_rng(0)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / name)


def table(folder, text):
    (folder / "labels.csv").write_text(text, encoding="utf-8")
    return open_images(folder)


def by_path(images, values):
    return {images.path(i): values[i] for i in range(len(images))}


def test_columns_say_sequence_and_frame(tmp_path):
    save(tmp_path, ["a.png", "b.png", "c.png", "d.png"])
    images = table(tmp_path, "path,sequence,frame\na.png,x,10\nb.png,y,1\nc.png,x,9\nd.png,,2.5\n")
    read = sequences.read(images)
    sequence = by_path(images, read.sequence.tolist())
    assert sequence["a.png"] == sequence["c.png"]
    assert len(set(sequence.values())) == 3, "an image without a sequence is one of its own"
    assert by_path(images, read.frame.tolist()) == {"a.png": 10, "b.png": 1, "c.png": 9, "d.png": 2.5}
    assert read.note == "3 sequences: column `sequence`; frames in order: column `frame`"


@pytest.mark.parametrize("cell", ["", "soon", "nan", "inf"])
def test_a_frame_that_is_no_number_is_refused_by_name(tmp_path, cell):
    save(tmp_path, ["a.png", "b.png"])
    images = table(tmp_path, f"path,sequence,frame\na.png,x,1\nb.png,x,{cell}\n")
    with pytest.raises(ValueError, match=r"frame.*b\.png"):
        sequences.read(images)


def test_without_columns_folders_are_sequences_and_numbers_are_numbers(tmp_path):
    names = ["day1/t9.png", "day1/t10.png", "day1/t100.png", "day2/t2.png", "day2/t1.png"]
    save(tmp_path, names)
    images = open_images(tmp_path)
    read = sequences.read(images)
    assert by_path(images, read.frame.tolist()) == dict(zip(names, [0, 1, 2, 1, 0], strict=True))
    sequence = by_path(images, read.sequence.tolist())
    assert len({sequence[name] for name in names[:3]}) == 1
    assert sequence["day1/t9.png"] != sequence["day2/t1.png"]
    assert "each folder is a sequence" in read.note


def test_frames_without_numbers_of_their_own_are_counted_by_name(tmp_path):
    save(tmp_path, ["p/t10.png", "q/t9.png"])
    images = table(tmp_path, "path,sequence\np/t10.png,x\nq/t9.png,x\n")
    assert by_path(images, sequences.read(images).frame.tolist()) == {"p/t10.png": 0, "q/t9.png": 1}


def test_blank_cells_and_spaces_make_no_sequence_and_the_only_frame_needs_no_number(tmp_path):
    """As groups are read, by which sequences are held out."""
    save(tmp_path, ["a.png", "b.png", "c.png", "d.png"])
    images = table(tmp_path, 'path,sequence,frame\na.png,x,1\nb.png," x ",2\nc.png," ",\nd.png," ",3\n')
    read = sequences.read(images)
    sequence = by_path(images, read.sequence.tolist())
    assert sequence["a.png"] == sequence["b.png"]
    assert len({sequence[name] for name in ("a.png", "c.png", "d.png")}) == 3
    found = groups.of(images)
    assert found is not None
    np.testing.assert_array_equal(read.sequence, found.codes)
    assert by_path(images, read.frame.tolist())["c.png"] == 0


def test_superscripts_in_names_are_no_numbers(tmp_path):
    save(tmp_path, ["p/t1\u00b210.png", "p/t1\u00b29.png"])
    assert sorted(sequences.read(open_images(tmp_path)).frame.tolist()) == [0, 1]
