"""Export encoders to other libraries and runtimes, read them back there, and compare the features."""

from omma.weights.export.check import compare
from omma.weights.export.timm_ import timm_twin, twin

__all__ = ("compare", "timm_twin", "twin")
