"""Names and values are the same on the command line and in Python, option by option."""

import inspect
from importlib import import_module
from typing import Literal, get_args, get_origin

import pytest

from omma import cli
from omma.core.checks import either

VERBS = [name for name in cli.COMMANDS if name not in ("methods", "models", "demo")]  # those print alone
CURVE, CUES = "verbs.curve.curve", "verbs.shape_texture.shape_texture"
LIMITS = (
    "image_bytes",
    "request_bytes",
    "pixels",
    "images",
    "queue",
    "seconds",
    "body_seconds",
    "connections",
)
# options of the command line that Python has elsewhere
ONLY = {
    "evaluate": {
        "confusion": "evaluation.detail.write_matrices",
        "report": "verbs.report.report_evaluation",
        "curve": CURVE,
        "seeds": CURVE,
        "adapt": CURVE,  # there adapters
    },
    "explain": {"shape_texture": CUES, "labelled": CUES},
    "search": {"json": "verbs.search.Searched", "out": "verbs.search.Searched"},  # its table
    "serve": dict.fromkeys(LIMITS, "serving.limits.Limits"),
    "predict": {"move": "verbs.predict.predict"},  # is refused
}
# what is of use in Python alone: callbacks, options that follow --method., second names
PYTHON = {
    "progress", "listen", "options", "model_options", "adapt_options", "supervision", "ready", "limits",
    "cache", "batch", "protocols", "page",
}  # fmt: skip


def parameters(command):
    own = inspect.signature(cli.COMMANDS[command]).parameters
    verb = inspect.signature(getattr(import_module(f"omma.verbs.{command}"), command)).parameters
    return {name: p for name, p in own.items() if name != "dotted"}, verb


def members(kind):
    """The words that an annotation lists."""
    if get_origin(kind) is Literal:
        return {*get_args(kind)}
    return {word for each in get_args(kind) for word in members(each)}


@pytest.mark.parametrize("command", VERBS)
def test_python_takes_what_the_command_line_takes(command):
    own, verb = parameters(command)
    elsewhere = ONLY.get(command, {})
    assert own.keys() - verb.keys() == elsewhere.keys()
    assert verb.keys() - own.keys() <= PYTHON
    for place in elsewhere.values():
        module, _, name = place.rpartition(".")
        assert hasattr(import_module(f"omma.{module}"), name)
    for name in own.keys() & verb.keys():
        ours, theirs = own[name], verb[name]
        any_text = str in (theirs.annotation, *get_args(theirs.annotation))
        assert any_text or members(ours.annotation) <= members(theirs.annotation), name
        if ours.default == "auto":
            assert theirs.default == "auto", name
        if ours.default not in (ours.empty, (), None) and theirs.default is not theirs.empty:
            assert ours.default == theirs.default, name


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
@pytest.mark.parametrize("name", ["batch_size", "image_size", "accumulate", "lr", "workers"])
def test_auto_is_a_value_of_numbers(command, name):
    verb = parameters(command)[1]
    assert "auto" in members(verb[name].annotation)
    assert verb[name].default == "auto"


def test_an_option_of_two_names():
    assert either("protocol", "knn", "protocols", None) == ("knn",)
    assert either("protocol", (), "protocols", ["knn", "linear", "knn"]) == ("knn", "linear")
    with pytest.raises(ValueError, match="protocol and protocols are the same option"):
        either("protocol", "knn", "protocols", ["linear"])
