"""What a run is told of its images: how labels and parts were read."""

from PIL import Image

from omma.core.protocols import Needs
from omma.pretraining.data import open_source, prepare
from omma.pretraining.request import Request


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
