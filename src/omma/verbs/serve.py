"""Replaced by its owner."""


def serve() -> None:
    """Not there yet."""
