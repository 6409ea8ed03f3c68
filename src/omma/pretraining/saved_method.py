"""The whole method of a run, with its decoder or heads, from the last checkpoint."""

from collections.abc import Sequence
from pathlib import Path

from omma import backbones, methods, weights
from omma.core.protocols import Context, Method
from omma.core.recipe import restored
from omma.pretraining.folder import RunFolder
from omma.train import checkpoint
from omma.weights import Model


def trained_method(folder: RunFolder) -> Method | None:
    """None without a checkpoint, or if the method reconstructs nothing."""
    return whole(folder) if methods.get(folder.config()["method"]).reconstructs else None


def whole(folder: RunFolder) -> Method | None:
    """Encoder and heads, in evaluation mode, of a method that needs no more than images; None without a
    checkpoint."""
    config = folder.config()
    file = methods.get(config["method"])
    saved, _ = checkpoint.newest(folder.checkpoints)
    if saved is None:
        return None
    encoder = backbones.build(**weights.load(folder.path).encoder.spec())
    settings = restored(file.Config, config["settings"]["config"])
    method = file.Method(encoder, settings, Context(image_size=config["image_size"]))
    checkpoint.restore(saved, method, None)
    return method.eval()


def of(model: str | Path | Model, kinds: Sequence[str]) -> Method | None:
    """That of a run's folder, if "reconstruct" is among what is asked of it; None for any other model."""
    if "reconstruct" not in kinds or isinstance(model, Model):
        return None
    folder = RunFolder(Path(model))
    return trained_method(folder) if folder.config() else None
