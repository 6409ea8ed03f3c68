"""Balanced assignments as methods make them: a centre by Sinkhorn-Knopp, then the softmax."""

from omma.losses import distillation
from omma.methods.shared.sinkhorn import centre


def sinkhorn(logits, temperature, *more, **functions):
    return distillation.probabilities(logits, centre(logits, temperature, *more, **functions), temperature)
