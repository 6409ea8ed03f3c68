"""What recipes ask of a model, by its name."""

import pytest

from omma import backbones
from omma.backbones import Traits


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vit-l/14", Traits(14, 24, 1024, plain=True, drops_tokens=True, hierarchical=False)),
        ("beit-b/16", Traits(16, 12, 768, plain=True, drops_tokens=True, hierarchical=False)),
        ("swin-b", Traits(None, None, None, plain=True, drops_tokens=False, hierarchical=True)),
        ("vitc-15mf", Traits(None, None, None, plain=False, drops_tokens=False, hierarchical=False)),
        ("vit/8", Traits(8, None, None, plain=True, drops_tokens=True, hierarchical=False)),
    ],
)
def test_traits_of_names(name, expected):
    assert backbones.traits(name) == expected


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="did you mean"):
        backbones.traits("vit-x/16")
