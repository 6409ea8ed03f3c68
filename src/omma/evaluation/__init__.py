"""Features and labels in, figures with intervals out."""

from collections.abc import Sequence

PROTOCOLS = ("knn", "linear", "ridge", "zeroshot", "retrieval")


def check_protocols(names: Sequence[str]) -> None:
    """Raise ValueError for a name that is no protocol, or for none at all."""
    if unknown := [name for name in names if name not in PROTOCOLS]:
        raise ValueError(f"protocol {unknown[0]!r}: choose among {', '.join(PROTOCOLS)}")
    if not names:
        raise ValueError(f"no protocol given: choose among {', '.join(PROTOCOLS)}")
