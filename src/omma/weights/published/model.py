"""From a published file's tensors to a backbone with its preprocessing."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from omma import backbones
from omma.protocols import Backbone, Preprocess
from omma.weights.published.configs import readable
from omma.weights.published.fit import plan
from omma.weights.published.inputs import preprocess, size_of
from omma.weights.published.recognise import recognise
from omma.weights.published.report import Report

HINTS = ("heads", "eps", "mlp", "positions", "pool")  # options that a file may leave open


def into_model(
    tensors: Mapping[str, Tensor],
    *,
    source: str,
    config: Mapping[str, Any] | None = None,
    preprocessor: Mapping[str, Any] | None = None,
    timm_cfg: Mapping[str, Any] | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    allow_partial: bool = False,
    beside: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
) -> tuple[Backbone, Preprocess, Report]:
    """The backbone that a file holds, on the CPU, how its images are prepared, and what its tensors became.

    config, preprocessor: of transformers' config.json and preprocessor_config.json. timm_cfg: timm's
    pretrained_cfg. image_size, channels: others than the file's; positions are interpolated, the first layer
    is spread. beside: names of what else the file holds, which may tell its dialect. options: of the backbone
    ("patch" and "drop_path" too), and what the file leaves open: heads, eps, mlp, positions, pool. Raises
    ValueError in one line: `recognise`, `fit`, `backbones.build`.
    """
    options = dict(options or {})
    hints = {key: options[key] for key in HINTS if key in options}
    recognised = recognise(tensors, config, source=source, timm_cfg=timm_cfg, beside=beside, options=hints)
    spec = recognised.spec | options
    if "patch" in options and "/" in spec["name"]:  # it is part of the name
        spec["name"] = re.sub(r"/\d+$", f"/{spec.pop('patch')}", spec["name"])
    spec["image_size"] = image_size or spec["image_size"]
    spec["channels"] = channels or spec["channels"]

    encoder = backbones.unfilled(**spec)
    found = plan(recognised, encoder)
    found.check(allow_partial)
    if found.report.missing:
        encoder = backbones.build(**spec)
    found.load(encoder)

    with readable(source):
        size = image_size or size_of(recognised, preprocessor, timm_cfg)
        prepared, note = preprocess(
            recognised, size=size, channels=spec["channels"], preprocessor=preprocessor, timm_cfg=timm_cfg
        )
    return encoder.eval(), prepared, replace(found.report, notes=(*found.report.notes, note))
