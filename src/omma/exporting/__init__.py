"""Encoders for other libraries and runtimes: written, read back by them, and compared."""

from omma.exporting.check import Compared, Reopened, compare
from omma.exporting.timm_ import timm_twin, twin

__all__ = ("Compared", "Reopened", "compare", "timm_twin", "twin")
