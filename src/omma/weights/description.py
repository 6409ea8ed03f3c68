"""Check model.json before anything is built from it: every field's type and range, and the network's size."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors

from omma import backbones
from omma.backbones.adapters import OPTION
from omma.core.errors import line
from omma.core.files import omma_version
from omma.weights.safetensors_file import open_tensors

MOST_PIXELS = 16_384  # of an image's side
MOST_CHANNELS = 1024
MOST_WIDTH = 65_536  # of any number of the network's: no network comes near
MOST_DEPTH = 1000  # blocks
MOST_TEXT = 1000  # characters
SLACK = 1_000_000  # parameters more than the weights have, before the network is built and compared by name


def check(description: Mapping[str, Any], file: Path, weights: Path) -> None:
    """Raise a one-line ValueError, which names file and field, for a description that cannot be right."""

    def expect(condition: bool, field: str, value: Any, what: str) -> None:
        if not condition:
            shown = line(ValueError(repr(value)))[:60]
            raise ValueError(
                f"{file}: {field}={shown}: {what} is expected; copy it again from the run folder"
            )

    for field in ("spec", "preprocess", "provenance", "extras"):
        value = description.get(field, {} if field in ("provenance", "extras") else None)
        expect(isinstance(value, dict), field, value, "an object")
    loaded = description.get("provenance", {}).get("loaded", [])
    texts = isinstance(loaded, list) and all(isinstance(text, str) for text in loaded)
    expect(texts, "provenance.loaded", loaded, "a list of texts")
    spec = description["spec"]
    _check_spec(spec, expect)
    check_preprocess(description["preprocess"], spec["channels"], expect)
    try:
        network = backbones.outline(**spec)
    except Exception as error:  # values of a right type that make no network fail in many ways
        writer = line(ValueError(description.get("omma", "?")))
        versions = f"it was written by omma {writer}, this is {omma_version()}"
        raise ValueError(f"{file}: spec: cannot rebuild the network ({line(error)}); {versions}") from error
    parameters, stored = sum(p.numel() for p in network.parameters()), _stored(weights)
    if stored is not None and parameters > 2 * stored + SLACK:
        raise ValueError(
            f"{file}: spec describes {parameters:,} parameters, {weights.name} holds {stored:,}: "
            "put the two files of one run together"
        )


def _check_spec(spec: Mapping[str, Any], expect: Callable[[bool, str, Any, str], None]) -> None:
    name = spec.get("name")
    expect(isinstance(name, str) and 0 < len(name) <= MOST_TEXT, "spec.name", name, "the name of a network")
    for field, most in (("image_size", MOST_PIXELS), ("channels", MOST_CHANNELS)):
        value = spec.get(field)
        expect(_whole(value, 1, most), f"spec.{field}", value, f"a whole number from 1 to {most:,}")
    adapt = spec.get(OPTION, {})
    expect(isinstance(adapt, dict), f"spec.{OPTION}", adapt, "an object")
    own = {field: value for field, value in spec.items() if field != OPTION}
    for field, value in (own | {f"{OPTION}.{key}": value for key, value in adapt.items()}).items():
        values = value if isinstance(value, list) else [value]
        numbers = [v for v in values if isinstance(v, int | float)]
        for each in values:
            plain = each is None or isinstance(each, bool | str | int | float)
            small = not isinstance(each, int | float) or (math.isfinite(each) and abs(each) <= MOST_WIDTH)
            short = not isinstance(each, str) or len(each) <= MOST_TEXT
            expect(plain and small and short, f"spec.{field}", each, "a text or a number of usual size")
        if any(word in field for word in ("depth", "layers", "blocks")):
            expect(sum(numbers) <= MOST_DEPTH, f"spec.{field}", value, f"no more than {MOST_DEPTH:,} blocks")


def check_preprocess(
    values: Mapping[str, Any], channels: int, expect: Callable[[bool, str, Any, str], None]
) -> None:
    """Call `expect` (condition, field, value, what is expected) for each field of a Preprocess."""

    def field(name: str) -> str:
        return f"preprocess.{name}"

    size, share = values.get("size"), values.get("crop_share", 1.0)
    expect(_whole(size, 1, MOST_PIXELS), field("size"), size, f"a whole number from 1 to {MOST_PIXELS:,}")
    own = values.get("channels")
    expect(type(own) is int and own == channels, field("channels"), own, f"{channels}, as in spec,")
    expect(_number(share) and 0.05 <= share <= 10, field("crop_share"), share, "a number from .05 to 10")
    for name in ("low", "high", "mean", "std"):
        value = values.get(name)
        right = isinstance(value, list) and len(value) == channels and all(_number(v) for v in value)
        expect(right, field(name), value, f"a list of {channels} finite number{'s' * (channels != 1)}")
    expect(min(values["std"]) > 0, field("std"), values["std"], "numbers above 0")
    ordered = all(low < high for low, high in zip(values["low"], values["high"], strict=True))
    expect(ordered, field("high"), values["high"], f"numbers above low={values['low']}")
    white = values.get("full_scale")
    expect(white is None or (_number(white) and white > 0), field("full_scale"), white, "a number above 0")


def _whole(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _stored(weights: Path) -> int | None:
    """Numbers in a .safetensors file, by its header; None if that is damaged (reading it says so)."""
    try:
        with open_tensors(weights) as opened:
            shapes = [opened.get_slice(name).get_shape() for name in opened.keys()]  # noqa: SIM118
    except (OSError, safetensors.SafetensorError):
        return None
    return sum(math.prod(shape) for shape in shapes)
