"""The whole method of a run, with its decoder, from the last checkpoint: what reconstructs images."""

from collections.abc import Sequence
from pathlib import Path

from omma import backbones, methods, weights
from omma.core.protocols import Context, Method
from omma.pretraining.folder import RunFolder
from omma.train import checkpoint
from omma.weights import Model


def trained_method(folder: RunFolder) -> Method | None:
    """None without a checkpoint, or if the method reconstructs nothing."""
    config = folder.config()
    file = methods.get(config["method"])
    saved, _ = checkpoint.newest(folder.checkpoints)
    if saved is None or not file.reconstructs:
        return None
    encoder = backbones.build(**weights.load(folder.path).encoder.spec())
    settings = file.Config(**config["settings"]["config"])
    method = file.Method(encoder, settings, Context(image_size=config["image_size"]))
    checkpoint.restore(saved, method, None)
    return method.eval()


def of(model: str | Path | Model, kinds: Sequence[str]) -> Method | None:
    """That of a run's folder, if "reconstruct" is among what is asked of it; None for any other model."""
    if "reconstruct" not in kinds or isinstance(model, Model):
        return None
    folder = RunFolder(Path(model))
    return trained_method(folder) if folder.config() else None
