"""From a published file's tensors to a backbone with its preprocessing."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from omma import backbones
from omma.core.protocols import Backbone, Preprocess
from omma.weights.published.configs import readable
from omma.weights.published.fit import plan
from omma.weights.published.inputs import preprocess, size_of
from omma.weights.published.recognise import recognise
from omma.weights.published.report import Report


def into_model(
    tensors: Mapping[str, Tensor],
    *,
    source: str,
    config: Mapping[str, Any] | None = None,
    preprocessor: Mapping[str, Any] | None = None,
    timm_cfg: Mapping[str, Any] | None = None,
    allow_partial: bool = False,
    beside: Sequence[str] = (),
) -> tuple[Backbone, Preprocess, Report]:
    """The backbone that a file holds, on the CPU, how its images are prepared, and what its tensors became.

    config, preprocessor: of transformers' config.json and preprocessor_config.json. timm_cfg: timm's
    pretrained_cfg. beside: names of what else the file holds, which may tell its dialect. Raises ValueError
    in one line: `recognise`, `fit`, `backbones.build`.
    """
    recognised = recognise(tensors, config, source=source, timm_cfg=timm_cfg, beside=beside)
    encoder = backbones.unfilled(**recognised.spec)
    found = plan(recognised, encoder)
    found.check(allow_partial)
    if found.report.missing:
        encoder = backbones.build(**recognised.spec)
    found.load(encoder)

    with readable(source):
        size = size_of(recognised, preprocessor, timm_cfg)
        prepared, note = preprocess(
            recognised, size=size, channels=encoder.channels, preprocessor=preprocessor, timm_cfg=timm_cfg
        )
    return encoder.eval(), prepared, replace(found.report, notes=(*found.report.notes, note))
