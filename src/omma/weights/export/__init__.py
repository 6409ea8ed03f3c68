"""Encoders for other libraries and runtimes: written, read back by them, and compared."""

from omma.weights.export.check import compare
from omma.weights.export.timm_ import timm_twin, twin

__all__ = ("compare", "timm_twin", "twin")
