"""Confusions in a report: the matrix, the table of classes, and example images by their paths."""

import xml.etree.ElementTree as ET

import numpy as np
import pytest

from omma.data.sources.collection import ArrayImages
from omma.evaluation import metrics
from omma.evaluation.detail import detail
from omma.evaluation.split import Answer
from omma.reporting import confusions, html


def made(labels, predictions, classes, order=None, names=None):
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    scores = np.eye(classes, dtype=np.float32)[predictions]
    names = names or [f"c{k}" for k in range(classes)]
    found = metrics.single_label(predictions, labels, classes, scores)
    answer = Answer(predictions, {}, scores)
    return detail("linear", None, answer, labels, names, order, found, lambda i: f"x[{i}]").to_json()


def test_what_a_page_shows_of_the_classes():
    content = made([0, 0, 0, 1, 1, 2], [0, 1, 1, 1, 1, 0], 3, names=["<owl>", "crow", "jay"])
    images = ArrayImages(np.arange(6, dtype=np.uint8).repeat(768).reshape(6, 16, 16, 3), source="x")
    classes, matrix, examples = confusions.sections([content], images)
    text = html.page(title="x", verdicts=[], sections=[classes, matrix, examples])
    assert "<owl>" not in text
    assert "&lt;owl&gt; taken for crow: 2 of 3 (67%); jay taken for &lt;owl&gt;: 1 of 1" in text
    assert [row[0] for row in classes.pictures[0].table.rows] == ["jay", "<owl>", "crow"]  # by F1
    (grid,) = examples.pictures
    first = [(cell.path, cell.text, cell.mark) for cell in grid.rows[0] if cell is not None]
    assert first == [
        ("x[1]", "<owl>", False), ("x[2]", "<owl>", False), ("x[3]", "crow", None), ("x[4]", "crow", None)
    ]  # fmt: skip
    assert confusions.sections([content], images.subset(np.array([0])))[-1].title == "Confusions"


def test_the_matrix_shows_counts_in_the_order_of_relatives():
    drawn = ET.fromstring(confusions.matrix(made([0, 0, 1, 2], [0, 2, 1, 2], 3, np.array([2, 0, 1]))))
    space = "{http://www.w3.org/2000/svg}"
    names = [each.text for each in drawn.iter(f"{space}text")][:6:2]
    assert names == ["c2", "c0", "c1"]
    hints = [each.text for each in drawn.iter(f"{space}title")]
    assert hints == [
        "c2: 1 of 1 right",
        "c0 taken for c2: 1 of 2 (50%)",
        "c0: 1 of 2 right",
        "c1: 1 of 1 right",
    ]


@pytest.mark.parametrize(("classes", "width"), [(2, 480), (30, 960)])
def test_the_matrix_of_few_short_names_is_drawn_large(classes, width):
    """So that a phone shows it: no more room for names than they take, in a narrow view box."""
    labels = np.arange(classes).repeat(2)
    drawn = ET.fromstring(confusions.matrix(made(labels, np.roll(labels, 1), classes)))
    _, _, across, down = map(float, drawn.get("viewBox").split())
    assert across == width
    assert down < across


def test_of_many_classes_the_most_confused_are_drawn():
    labels = np.arange(100).repeat(3)
    predictions = labels.copy()
    predictions[297:] = 0  # all of the last class
    content = made(labels, predictions, 100)
    assert "The 40 classes that are confused most." in confusions._caption(content, "linear probe")
    drawn = confusions.matrix(content)
    assert "c99 taken for c0: 3 of 3 (100%)" in drawn
    assert drawn.count("<rect") == 40  # 39 right, since the last has no right answer, and the confusion


def test_answers_without_a_mistake_have_no_matrix():
    content = made([0, 1], [0, 1], 2)
    assert [each.title for each in confusions.sections([content], None)] == ["Classes"]
