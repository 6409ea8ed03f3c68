"""Replaced by its owner."""


def clean() -> None:
    """Not there yet."""
