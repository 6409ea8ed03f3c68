"""The whole method of a run, with its decoder, from the last checkpoint: what reconstructs images."""

from omma import backbones, methods, weights
from omma.core.protocols import Context, Method
from omma.pretraining.folder import RunFolder
from omma.train import checkpoint


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
