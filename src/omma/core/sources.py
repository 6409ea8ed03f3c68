"""The error for a source of images that is not there."""


def not_found(typed: str) -> ValueError:
    """The ValueError for a path at which there is nothing, as the user typed it."""
    return ValueError(f"{typed}: not found; give a folder, glob, archive, manifest or array of images")
