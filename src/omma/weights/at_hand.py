"""Published encoders that are on this machine already: those of the Hugging Face cache."""

import json
import os
from pathlib import Path

# transformers' networks that omma reads (docs/weights.md)
TYPES = (
    "vit", "deit", "beit", "swin", "dinov2", "dinov2_with_registers", "dinov3_vit", "clip",
    "clip_vision_model", "vit_mae",
)  # fmt: skip


def cached() -> list[str]:
    """Their names, as MODEL and --init take them, in order; nothing is loaded."""
    names = []
    for folder in sorted(_cache().glob("models--*--*")):
        organisation, _, name = folder.name.removeprefix("models--").partition("--")
        if not any(folder.glob("snapshots/*/*.safetensors")) and not any(folder.glob("snapshots/*/*.bin")):
            continue  # its weights were never fetched
        if organisation == "timm":
            names.append(f"timm:{name}")
        elif any(_model_type(file) in TYPES for file in folder.glob("snapshots/*/config.json")):
            names.append(f"hf:{organisation}/{name}")
    return names


def _cache() -> Path:
    """Where huggingface_hub keeps repositories, by its own variables."""
    home = os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "huggingface"
    )
    return Path(os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub"))


def _model_type(file: Path) -> str | None:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config.get("model_type") if isinstance(config, dict) else None
