"""What a run is told of its images: how labels and parts were read."""

import numpy as np
from PIL import Image

from omma.core.protocols import Needs
from omma.data.sources.collection import ArrayImages
from omma.data.sources.groups import Groups
from omma.pretraining import few_labels
from omma.pretraining.data import open_source, prepare
from omma.pretraining.request import Request, Supervision


def test_a_run_is_told_how_labels_are_read(tmp_path):
    for name in ["A/x/1.png", "A/x/2.png", "A/y/1.png", "A/y/2.png", "B/x/1.png", "B/x/2.png", "stray.png"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(tmp_path / name)
    notes = prepare(open_source(Request(tmp_path)), Needs(), 0).notes
    assert "1 image (in the top folder) outside of the class folders is unlabelled" in notes
    assert any(note.startswith("3 folders are 2 classes") for note in notes)
    opened = open_source(Request(tmp_path, label_depth="path"))
    assert opened.classes == ("A/x", "A/y", "B/x")
    assert not any("folders" in note for note in prepare(opened, Needs(), 0).notes)


def test_groups_larger_than_what_is_read_are_held_out_whole_but_not_read_whole():
    """Of a site of 20,000 images, 2,000 are decoded and kept in memory."""
    images = ArrayImages(
        np.zeros((12_000, 1, 1, 1), np.uint8), np.arange(12_000) % 2, ("cat", "dog"), source="cells"
    )
    sites = Groups("site", np.arange(12_000) // 4 % 3)
    part = few_labels.divide(images, np.arange(12_000), Supervision(), 0, sites)
    assert (len(part.learned), len(part.held_out)) == (8_000, few_labels.MOST)
    assert not set(sites.codes[part.learned]) & set(sites.codes[part.held_out])
    assert np.bincount(np.arange(12_000)[part.held_out] % 2).tolist() == [1_000, 1_000]
    assert "4,000 labelled images, 33%, in 1 whole group by site (2,000 are read)" in part.held_out_note
