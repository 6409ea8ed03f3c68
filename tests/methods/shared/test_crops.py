"""How the papers' codes make the pixels of views, which the defaults of the methods' options say."""

import importlib

import pytest

from omma.core.protocols import Colour
from omma.methods.shared import crops

PILLOW = ("random", "boxes", "edge", None)
ZEROS = ("random", "gaussian", "zero", None)
CODES = {  # jitter's order, kernel and border of blur, its radius, resampling, and how likely blur is
    "dino": (PILLOW, "bicubic", (1.0, 0.1, 0.5)),
    "ibot": (PILLOW, "bicubic", (1.0, 0.1, 0.5)),
    # https://github.com/facebookresearch/dinov2/pull/411: its probabilities are inverted
    "dinov2": (("random", "gaussian", "reflect", 4), "bicubic", (0.0, 0.9, 0.5)),
    "moco": (PILLOW, "bilinear", (1.0, 0.1)),
    "byol": (ZEROS, "bicubic", (1.0, 0.1)),
    "simclr": (ZEROS, "bicubic", (0.5,)),
    "vicreg": (PILLOW, "bicubic", (0.5,)),
    "beit": (("random", "gaussian", "reflect", None), "bicubic", (0.0,)),
    "simmim": (None, "bilinear", (None,)),
    "mae": (None, "bicubic", (None,)),
    "eva": (None, "bicubic", (None,)),
    "deit": (None, "bicubic", (None,)),
}


@pytest.mark.parametrize("name", CODES)
def test_the_papers_views(name):
    file = importlib.import_module(f"omma.methods.{name}")
    how, resample, blurred = CODES[name]
    plan = file.views(file.paper(224, "vit-s/16").config, 224)
    assert {crop.resample for crop in plan} == {resample}
    assert tuple(crop.colour and crop.colour.blur_p for crop in plan) == blurred
    for colour in [crop.colour for crop in plan if crop.colour]:
        assert (colour.jitter_order, colour.blur_kernel, colour.blur_border, colour.blur_radius) == how


@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("size", [32, 224])
def test_small_recipes_keep_theirs(name, size):
    """A fixed order, a Gaussian with reflected borders, bicubic, the first view always blurred."""
    file = importlib.import_module(f"omma.methods.{name}")
    plain = Colour()
    for number, crop in enumerate(file.views(file.small(size, "vit-s/16").config, size)):
        colour = crop.colour or plain
        assert crop.resample == "bicubic"
        assert colour.jitter_order == "fixed"
        assert colour.blur_kernel == "gaussian"
        assert colour.blur_border == "reflect"
        assert colour.blur_radius is None
        if name in ("dino", "ibot", "dinov2", "moco", "byol"):
            assert colour.blur_p == ((1.0, 0.1, 0.5)[number] if size == 224 else 0)


def test_blur_is_off_where_it_is():
    for config in (crops.MultiCrop(blur=False), crops.MultiCrop(blur=False, blur_p=(0.5, 0.5, 0.5))):
        assert {crop.colour.blur_p for crop in crops.multi_crop(config, 96)} == {0.0}
    first, second = crops.pair(32, (0.1, 1.0), blur=False)
    assert first.colour.blur_p == second.colour.blur_p == 0


@pytest.mark.parametrize("option", [{"blur_p": (0, 2, 0)}, {"blur_as": "box"}, {"jitter_order": "any"}])
def test_wrong_options_are_refused(option):
    with pytest.raises(ValueError, match=f"method.{next(iter(option))}="):
        crops.MultiCrop(**option)
