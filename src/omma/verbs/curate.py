"""Replaced by its owner."""


def curate() -> None:
    """Not there yet."""
