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
