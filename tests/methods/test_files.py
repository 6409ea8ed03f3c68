"""A method's file is a contract: what it must offer, and what stands in for the rest."""

import sys

import pytest

from omma import methods
from omma.core.protocols import Needs

FILE = """
from __future__ import annotations
from dataclasses import dataclass
from omma.core import protocols
from omma.core.protocols import Crop, Recipe

@dataclass(frozen=True, kw_only=True)
class Config:
    size: int | None = None

def views(config, image_size):
    return (Crop(size=image_size),)

def small(image_size, model):
    return Recipe(config=Config(), batch=2, lr=1.0)

paper = small

class Method(protocols.Method):
    pass
"""


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Writes a file into methods' path; forgets it afterwards."""
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])

    def write(text):
        (tmp_path / "toy_method.py").write_text(text)
        return methods.get("toy_method")

    yield write
    sys.modules.pop("omma.methods.toy_method", None)


def test_what_a_file_leaves_out_has_a_default(written):
    file = written(FILE)
    recipe = file.recipe("small")(16, "vit-n/4")
    assert file.needs(recipe.config) == Needs()
    assert file.adapted(recipe, {}) is recipe
    assert file.tokenizer is None
    assert not file.reconstructs


def test_an_incomplete_file_is_named_with_what_it_lacks(written):
    with pytest.raises(TypeError, match=r"toy_method\.py lacks views, small, paper: see CONTRIBUTING"):
        written(FILE[: FILE.index("def views")] + FILE[FILE.index("class Method") :])


def test_recipes_have_two_names():
    file = methods.get("dino")
    assert (file.recipe("small"), file.recipe("paper")) == (file.small, file.paper)
    with pytest.raises(ValueError, match="recipe 'views': choose small or paper"):
        file.recipe("views")


def test_which_methods_reconstruct():
    drawn = {name for name in methods.names() if methods.get(name).reconstructs}
    assert drawn == {"mae", "simmim", "vqvae", "dvae"}
