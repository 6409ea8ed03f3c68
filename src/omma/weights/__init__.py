"""Save and load encoders, omma's own and published ones.

store.py saves omma's: one .safetensors file with timm's parameter names, one .json beside it. source.py loads
every form of MODEL; read_file.py reads files, hub.py downloads them, published/ turns them into encoders.
"""

from omma.weights.digest import digest
from omma.weights.model import Model
from omma.weights.source import fit, load, named
from omma.weights.store import WEIGHTS, provenance, save

__all__ = ("WEIGHTS", "Model", "digest", "fit", "load", "named", "provenance", "save")
