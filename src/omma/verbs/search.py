"""Replaced by its owner."""


def search() -> None:
    """Not there yet."""
