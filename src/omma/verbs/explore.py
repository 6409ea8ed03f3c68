"""Replaced by its owner."""


def explore() -> None:
    """Not there yet."""
