"""What the report says of a classifier."""

from xml.etree import ElementTree

import pytest

from omma.reporting import classifier

BIN = {"images": 40, "confidence": 0.9, "accuracy": 0.8}


def facts(**changes):
    top1 = {"value": 0.9, "interval95": [0.85, 0.95]}
    return {
        "adapt": "head",
        "classes": ["a", "b"],
        "multi_label": False,
        "calibration": {"temperature": 0.6},
        "floors": [{"name": "hinge", "features": "pixels", "metric": "top1", **top1, "value": 0.6}],
        "held_out": {
            "protocol": "5-fold cross-validation",
            "metrics": {"top1": top1, "ece": {"value": 0.02, "interval95": [0.01, 0.03]}},
            "ece_before": 0.1,
            "reliability": [[BIN], [BIN, {"images": 2, "confidence": 0.5, "accuracy": 0.5}]],
        },
        **changes,
    }


@pytest.mark.parametrize(("value", "level"), [(0.6, "good"), (0.97, "warn")])
def test_a_floor_that_is_better_is_named(value, level):
    found = facts()
    found["floors"][0]["value"] = value
    verdict = classifier.verdict(found)
    assert (verdict.sentence, verdict.level) == ("90.0 % right", level)
    assert ("hinge on pixels is better" in verdict.reason) == (level == "warn")


def test_what_nothing_was_held_out_of_is_not_judged():
    bare = {k: v for k, v in facts(floors=[]).items() if k != "held_out"}
    assert classifier.verdict(bare).level == "warn"
    assert classifier.sections(bare) == []


def test_floors_ways_and_reliability_are_drawn():
    ways = [
        {"name": name, "value": v, "interval95": [v - 0.1, v], "images": 20, "seconds": 3.0}
        for name, v in (("head", 0.9), ("full", 0.91))
    ]
    sections = classifier.sections(facts(candidates=ways, not_tried=["lora is not tried: few labels"]))
    assert [s.title for s in sections] == [
        "Beside simpler classifiers",
        "Ways that were tried",
        "How sure it is",
    ]
    assert "lora is not tried" in sections[1].caption
    assert "0.1 before, 0.02 after" in sections[2].caption
    (chart,) = sections[2].pictures
    circles = [e for e in ElementTree.fromstring(str(chart)).iter() if e.tag.endswith("circle")]
    assert len(circles) == 3
    sizes = [float(circle.attrib["r"]) for circle in circles]
    assert sizes[0] == sizes[1] > sizes[2]
