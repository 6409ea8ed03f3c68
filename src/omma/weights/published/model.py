"""Turn a published file's tensors into a backbone with its preprocessing."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from omma import backbones
from omma.core.protocols import Backbone, Preprocess
from omma.weights.published.configs import readable
from omma.weights.published.fit import assign
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
    other_entries: Sequence[str] = (),
) -> tuple[Backbone, Preprocess, Report]:
    """The backbone in a file (on the CPU), its preprocessing, and a report on the file's tensors.

    config, preprocessor: contents of transformers' config.json and preprocessor_config.json. timm_cfg: timm's
    pretrained_cfg. other_entries: names of the file's other entries, which may tell its naming scheme. Raises
    a one-line ValueError, as `recognise`, `fit` and `backbones.build` do.
    """
    recognised = recognise(tensors, config, source=source, timm_cfg=timm_cfg, other_entries=other_entries)
    encoder = backbones.unfilled(**recognised.spec)
    assignment = assign(recognised, encoder)
    assignment.check(allow_partial)
    if assignment.report.missing:
        encoder = backbones.build(**recognised.spec)
    assignment.load(encoder)

    with readable(source):
        size = size_of(recognised, preprocessor, timm_cfg)
        prepared, note = preprocess(
            recognised, size=size, channels=encoder.channels, preprocessor=preprocessor, timm_cfg=timm_cfg
        )
    return encoder.eval(), prepared, replace(assignment.report, notes=(*assignment.report.notes, note))
