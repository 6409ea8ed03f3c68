"""Encoders on disk and back: one .safetensors file with timm's parameter names, one .json beside it."""

from omma.weights.digest import digest
from omma.weights.model import Model
from omma.weights.store import load, save

__all__ = ("Model", "digest", "load", "save")
