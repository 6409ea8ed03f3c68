"""Encoders on disk and back, omma's own and published ones.

store.py keeps omma's: one .safetensors file with timm's parameter names, one .json beside it. source.py loads
whatever a MODEL can be; files.py reads files, hub.py fetches them, published/ makes encoders of them.
"""

from omma.weights.digest import digest
from omma.weights.model import Model
from omma.weights.source import fit, load
from omma.weights.store import save

__all__ = ("Model", "digest", "fit", "load", "save")
