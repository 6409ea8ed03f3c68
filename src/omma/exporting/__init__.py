"""Encoders for other libraries and runtimes: written, read back by them, and compared."""

from omma.exporting.check import compare
from omma.exporting.timm_ import timm_twin, twin

__all__ = ("compare", "timm_twin", "twin")
