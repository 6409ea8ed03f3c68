"""Where what can be rebuilt is kept."""

import os
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """$OMMA_CACHE, else $XDG_CACHE_HOME/omma, else ~/.cache/omma; among temporary files without a home."""
    if own := os.environ.get("OMMA_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(shared) if shared else Path.home() / ".cache") / "omma"
    except RuntimeError:  # neither $HOME nor an entry for this user
        return Path(tempfile.gettempdir()) / f"omma-{os.getuid() if hasattr(os, 'getuid') else 'cache'}"


def features_folder(model: str | Path) -> Path:
    """Where computed features of a model are kept: beside its weights, where these are files here."""
    folder = Path(model)
    if not folder.exists():  # published weights, by name
        return cache_folder() / "features"
    return (folder if folder.is_dir() else folder.parent) / "features"
