"""Read settings of a network from config.json, as transformers, timm and open_clip write it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from omma.core.errors import line
from omma.weights.description import MOST_PIXELS

ACTIVATIONS = {"gelu": "gelu", "quick_gelu": "quickgelu"}
NUMBERS = {"heads": (int,), "image_size": (int,), "eps": (int, float), "rope_base": (int, float)}


def read_settings(
    config: Mapping[str, Any] | None, timm_cfg: Mapping[str, Any] | None, source: str
) -> dict[str, Any]:
    """Those of heads, eps, mlp, image_size, grid, pool, interpolation and rope_base in the settings.

    Raises ValueError for an activation that omma does not have, and for values of a wrong type.
    """
    with readable(source):
        settings = _read(config, timm_cfg, source)
    for name, value in settings.items():
        if name in NUMBERS and not (type(value) in NUMBERS[name] and value > 0):
            raise ValueError(f"{source}: its config.json says {name}={value!r}: a number above 0 is expected")
    if settings.get("image_size", 1) > MOST_PIXELS:
        size = settings["image_size"]
        raise ValueError(f"{source}: its config.json says image_size={size}: {MOST_PIXELS:,} are the most")
    return settings


@contextmanager
def readable(source: str) -> Iterator[None]:
    """Turn any error from malformed settings into a one-line ValueError."""
    try:
        yield
    except (TypeError, KeyError, IndexError, AttributeError, ArithmeticError) as error:
        why = f"{type(error).__name__}: {line(error)}"
        raise ValueError(f"{source}: the settings beside its weights are malformed ({why})") from error


def _read(
    config: Mapping[str, Any] | None, timm_cfg: Mapping[str, Any] | None, source: str
) -> dict[str, Any]:
    config = dict(config or {})
    if "vision_config" in config:  # CLIP with its text tower
        config = dict(config["vision_config"] or {})
    timm_cfg = timm_cfg or config.get("pretrained_cfg")
    if timm_cfg:
        return _from_timm({**config, **timm_cfg})
    if "model_cfg" in config:
        return _from_open_clip(config["model_cfg"])
    return _from_transformers(config, source)


def _from_timm(cfg: Mapping[str, Any]) -> dict[str, Any]:
    architecture, settings = str(cfg.get("architecture", "")), {"interpolation": "antialias"}
    if "clip" in architecture:
        settings["mlp"] = "quickgelu" if "quickgelu" in architecture else "gelu"
    if cfg.get("input_size"):
        settings["image_size"] = cfg["input_size"][-1]
    return settings


def _from_open_clip(cfg: Mapping[str, Any]) -> dict[str, Any]:
    vision = cfg.get("vision_cfg", {})
    settings: dict[str, Any] = {"mlp": "quickgelu" if cfg.get("quick_gelu") else "gelu"}
    if "width" in vision:
        settings["heads"] = vision["width"] // vision.get("head_width", 64)
    return settings


def _from_transformers(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    heads, size = config.get("num_attention_heads"), config.get("image_size")
    rope = {**(config.get("rope_parameters") or {}), **config}.get("rope_theta")
    settings = {"heads": heads, "eps": config.get("layer_norm_eps"), "rope_base": rope}
    if isinstance(size, list | tuple) and len(size) == 2:
        patch = config.get("patch_size") or 1
        patches = patch if isinstance(patch, list | tuple) else (patch, patch)
        settings |= {"grid": (size[0] // patches[0], size[1] // patches[1]), "image_size": max(size)}
    elif isinstance(size, int):
        settings["image_size"] = size
    act = config.get("hidden_act")
    gated = config.get("use_gated_mlp") or config.get("use_swiglu_ffn")
    if gated and config.get("use_gated_mlp") and act != "silu":
        raise ValueError(
            f"{source}: its config.json says hidden_act={act!r} with a gate; omma's gates are silu"
        )
    if act is not None and not gated:
        if act not in ACTIVATIONS:
            supported = ", ".join(ACTIVATIONS)
            raise ValueError(f"{source}: its config.json says hidden_act={act!r}; omma has {supported}")
        settings["mlp"] = ACTIVATIONS[act]
    if config.get("model_type") == "beit" and config.get("use_mean_pooling") is False:
        settings["pool"] = "token"
    return {key: value for key, value in settings.items() if value is not None}
