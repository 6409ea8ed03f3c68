"""Replaced by its owner."""


def explain() -> None:
    """Not there yet."""
