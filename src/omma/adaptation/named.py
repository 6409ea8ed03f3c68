"""A CLIP-like model as a classifier: the vectors of its classes' names are the weights of a linear layer."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from omma.backbones.layers import text
from omma.backbones.layers.prompts import CONTEXT, FACT
from omma.core.protocols import Extras
from omma.evaluation.zeroshot import TextReader
from omma.weights import Model
from omma.weights.classifier import Classifier

SCALE = "logit_scale"  # its logarithm's name in `Extras.tensors`


def scale_of(tensors: Mapping[str, Tensor], name: str) -> float:
    """What cosines are multiplied by; ValueError if the model does not hold it."""
    if SCALE not in tensors:
        raise ValueError(f"{name} does not hold the scale of its logits (logit_scale); copy it again")
    return float(tensors[SCALE].float().exp())


def with_names(
    model: Model, reader: TextReader, classes: Sequence[str], name: str, device: torch.device | str = "cpu"
) -> Model:
    """The model with a classifier of these classes: s cos(P f, class), s from its training.

    The classes are read as `reader` says: in templates, by descriptions or in a learned context. The text
    tower, the tokenizer and a learned context stay beside the encoder, so that other classes can be named
    later. Raises ValueError if the model lacks its scale, and as `TextReader.vectors`.
    """
    paired, scale = reader.paired, scale_of(model.extras.tensors, name)
    classifier = Classifier(
        classes=tuple(classes),
        weight=scale * torch.from_numpy(reader.vectors(classes, device)),
        projection=paired.projection.float().T.contiguous(),
    )
    assert paired.tokenizer is not None
    old = ("classifier.", "distilled.", "held_out.", CONTEXT)
    tensors = {n: x for n, x in model.extras.tensors.items() if not n.startswith(old)}
    tensors[text.MERGES] = torch.from_numpy(paired.tokenizer.merges).int()
    facts = {
        n: x
        for n, x in model.extras.facts.items()
        if n not in ("classes", "calibration", "multi_label", FACT)
    }
    for more in (classifier.extras(), *([reader.context.extras()] if reader.context else [])):
        tensors |= more.tensors
        facts |= more.facts
    return Model(model.encoder, model.preprocess, model.provenance, Extras(tensors, facts))
