"""Preprocessing of a published network: as its authors state it, else as is usual for its kind."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from omma.core.protocols import Preprocess
from omma.data.batches.preprocess import IMAGENET_MEAN, IMAGENET_STD, as_dict
from omma.weights.description import check_preprocess
from omma.weights.published.recognise import Recognised

NORMALISED = {  # mean and standard deviation of red, green and blue in [0, 1]
    "ImageNet's": (IMAGENET_MEAN, IMAGENET_STD),
    "CLIP's": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "0.5": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "DALL-E's": ((-0.125,) * 3, (1.25,) * 3),  # .8 x + .1 [Ramesh 2021, appendix A.3]
}
CROP_SHARE = {"CLIP's": 1.0, "DALL-E's": 1.0}  # elsewhere 224 of 256 pixels


def preprocess(
    recognised: Recognised | None,
    *,
    size: int,
    channels: int = 3,
    preprocessor: Mapping[str, Any] | None = None,
    timm_cfg: Mapping[str, Any] | None = None,
) -> tuple[Preprocess, str]:
    """How the network's images are prepared, and one sentence on where that is from.

    preprocessor: contents of transformers' preprocessor_config.json. timm_cfg: timm's pretrained_cfg. Without
    either, the kind of network decides (`recognised` is then required): EVA and CLIP use CLIP's mean and
    standard deviation, BEiT and Google's ViT .5, others ImageNet's. For other than three channels each one
    gets the mean over red, green and blue.
    """
    white = 255.0
    if preprocessor:
        mean, std, crop_share, white = _from_transformers(preprocessor)
        note = "input as preprocessor_config.json says"
    elif timm_cfg:
        imagenet = NORMALISED["ImageNet's"]
        mean, std = (timm_cfg.get(k, v) for k, v in zip(("mean", "std"), imagenet, strict=True))
        # timm truncates the size that it resizes to, omma rounds it
        crop_share = size / math.floor(size / float(timm_cfg.get("crop_pct") or 1.0))
        note = "input as timm's pretrained_cfg says"
    else:
        assert recognised is not None, "without settings the network must be recognised"
        kind = _usual_normalisation(recognised)
        mean, std = NORMALISED[kind]
        crop_share = CROP_SHARE.get(kind, 0.875)
        note = f"input normalised with mean and deviation {kind}, as is usual for {recognised.spec['name']}"
    mean, std = _for_channels(mean, channels), _for_channels(std, channels)
    result = Preprocess(
        size=size,
        channels=channels,
        low=(0.0,) * channels,
        high=(white,) * channels,
        mean=mean,
        std=std,
        crop_share=crop_share,
        full_scale=white,
    )

    def expect(condition: bool, field: str, value: Any, what: str) -> None:
        if not condition:
            raise ValueError(
                f"settings beside the weights give {field}={str(value)[:60]}: {what} is expected"
            )

    check_preprocess(as_dict(result), channels, expect)
    return result, note


def size_of(
    recognised: Recognised, preprocessor: Mapping[str, Any] | None, timm_cfg: Mapping[str, Any] | None
) -> int:
    """Image size in pixels that the authors evaluate with."""
    if preprocessor:
        crop, size = preprocessor.get("crop_size"), preprocessor.get("size")
        side = _side(crop) if preprocessor.get("do_center_crop", bool(crop)) else _side(size)
        if side or _side(size):
            return side or _side(size)
    if timm_cfg and timm_cfg.get("input_size"):
        return int(timm_cfg["input_size"][-1])
    return int(recognised.spec["image_size"])


def _usual_normalisation(recognised: Recognised) -> str:
    if "normalised" in recognised.settings:
        return recognised.settings["normalised"]
    name, clip = recognised.spec["name"], recognised.spec.get("norm_pre", False)
    if clip or name.startswith("eva"):
        return "CLIP's"
    return "0.5" if name.startswith("beit") else "ImageNet's"


def _from_transformers(config: Mapping[str, Any]) -> tuple[Sequence[float], Sequence[float], float, float]:
    """Mean and standard deviation of values in [0, 1], the share that is cropped, and white."""
    mean, std = config.get("image_mean", IMAGENET_MEAN), config.get("image_std", IMAGENET_STD)
    if config.get("do_normalize") is False:
        mean, std = (0.0,) * 3, (1.0,) * 3
    factor = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0
    white = 65535.0 if math.isclose(factor, 1 / 65535, rel_tol=1e-3) else 255.0
    if not math.isclose(factor * white, 1.0, rel_tol=1e-3):  # values that are not in [0, 1], as 0..255
        mean, std = ([value / (factor * white) for value in values] for values in (mean, std))
    crop, resized = _side(config.get("crop_size")), _side(config.get("size"))
    cropped = config.get("do_center_crop", bool(crop)) and crop and resized
    return mean, std, min(crop / resized, 1.0) if cropped else 1.0, white


def _side(size: Any) -> int:
    """transformers writes 224, [224, 224], {"height": 224, "width": 224} or {"shortest_edge": 224}."""
    if isinstance(size, Mapping):
        size = size.get("shortest_edge") or size.get("height")
    if isinstance(size, list | tuple):
        size = size[0] if size else None
    return int(size or 0)


def _for_channels(values: Sequence[float], channels: int) -> tuple[float, ...]:
    values = [float(v) for v in values]
    if len(values) == channels:
        return tuple(values)
    return (round(sum(values) / len(values), 6),) * channels
