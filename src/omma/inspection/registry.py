"""The kinds of explanation by name; each is a file of this room, imported when it is asked for."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omma.inspection.kinds import Kind, Subject

# in the order of the page: name on the command line, and file
KINDS = {
    "attention": "attention",
    "rollout": "rollout",
    "occlusion": "occlusion",
    "gradcam": "gradcam",
    "gradients": "gradients",
    "pca": "pca",
    "parts": "parts",
    "class-max": "class_images",
    "patches": "patches",
    "neighbours": "neighbours",
    "reconstruct": "reconstruct",
}


def check(names: tuple[str, ...]) -> None:
    """Raise ValueError for a kind that does not exist; imports none of them."""
    for name in names:
        if name not in KINDS:
            raise ValueError(f"--what {name}: there is no such kind: choose among {', '.join(KINDS)}")


def find(name: str) -> "Kind":
    """The kind of this name. Raises ValueError for one that does not exist."""
    check((name,))
    return import_module(f"omma.inspection.{KINDS[name]}").KIND


def chosen(names: tuple[str, ...], subject: "Subject") -> list["Kind"]:
    """The kinds of these names, or without any, the defaults that the subject can have, in this order.

    Raises ValueError for one that was asked for and that this subject cannot have.
    """
    if not names:
        return [kind for kind in map(find, KINDS) if kind.default and kind.lacks(subject) is None]
    kinds = [find(name) for name in dict.fromkeys(names)]
    for kind in kinds:
        if (why := kind.lacks(subject)) is not None:
            can = ", ".join(name for name in KINDS if find(name).lacks(subject) is None)
            raise ValueError(f"--what {kind.name}: {why}; this model has {can}")
    return kinds
