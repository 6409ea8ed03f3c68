"""What `omma methods NAME` prints: each file opens with its idea, equation, cost and when to choose it."""

import inspect
import re

import pytest

from omma import methods
from omma.cli import about


@pytest.mark.parametrize("name", methods.names())
def test_a_file_opens_with_what_a_reader_wants(name):
    doc = methods.get(name).doc
    first, blank, *rest = doc.splitlines()
    assert re.search(r"\[\w.*\d{4}, arXiv \d{4}\.\d{4,5}\]\.$", first)
    assert blank == ""
    idea = rest[: rest.index("")]
    assert 2 <= len(idea) <= 6
    assert re.search(r"^    \S.*=", doc, re.MULTILINE), "an equation, indented"
    assert re.search(r"^Costs: ", doc, re.MULTILINE)
    assert re.search(r"^Choose it ", doc, re.MULTILINE)


@pytest.mark.parametrize("name", methods.names())
def test_recipes_say_their_command(name):
    file = methods.get(name)
    said = inspect.getdoc(file.paper) or ""
    assert re.search(rf"`omma pretrain \w+ --method {name} [^`]*--recipe paper", said)
    for recipe in (file.paper, file.small):
        made = recipe(64, "vit-s/8")
        assert made.batch >= 1
        assert file.views(made.config, 64)


@pytest.mark.parametrize("name", methods.names())
def test_the_command_prints_it(name, capsys):
    assert about.methods(name) == 0
    said = capsys.readouterr().out
    assert "Costs: " in said
    assert "peak learning rate" in said
