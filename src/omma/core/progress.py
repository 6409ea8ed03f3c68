"""How functions report how far they are."""

from collections.abc import Callable

Progress = Callable[[int, int], None]  # done, and in all: images, where nothing else is said
StageProgress = Callable[[str, int, int], None]  # the current stage, what is done of it, and of how much
