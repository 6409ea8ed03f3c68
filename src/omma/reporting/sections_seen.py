"""Sections of a run's report on what the model sees: kinds of inspection, on a few of its images."""

from collections.abc import Callable

from omma.core.errors import line
from omma.core.protocols import Method
from omma.inspection import registry
from omma.inspection.kinds import Explanation, Subject
from omma.inspection.maps import subject_of
from omma.reporting.explain_page import sections as drawn
from omma.reporting.gallery import Gallery
from omma.reporting.html import Section

KINDS = ("neighbours", "attention", "pca", "parts", "reconstruct")  # that cost little


def sections(
    gallery: Gallery, labels_trained: bool, method: Callable[[], Method | None], notes: list[str]
) -> list[Section]:
    """One for each kind that this model and these images can have; what fails becomes a note.

    labels_trained: whether training used the labels. method: loads the trained method, for what reconstructs.
    """
    try:
        pixels, rows = gallery.shown
    except (ValueError, OSError, RuntimeError) as error:
        notes.append(f"What the model sees: not drawn ({line(error)})")
        return []
    subject = subject_of(
        gallery.model,
        pixels,
        paths=gallery.paths(rows),
        gallery=gallery.images,
        seed=gallery.seed,
        options={"own": rows, "trained": labels_trained},
    )[0]
    found: list[Explanation] = []
    for name in KINDS:
        try:
            made = _explained(name, subject, gallery, method)
        except (ValueError, OSError, RuntimeError) as error:
            notes.append(f"{name}: not drawn ({line(error)})")
            continue
        if made is not None:
            found.append(made)
            notes += made.notes
    return drawn(found, subject.shown, paths=subject.paths)


def _explained(
    name: str, subject: Subject, gallery: Gallery, method: Callable[[], Method | None]
) -> Explanation | None:
    """None if there is none of this kind."""
    if name == "neighbours":
        subject = subject.with_options(features=gallery.features)
    elif name == "reconstruct":
        subject = subject.with_options(method=method())
    kind = registry.find(name)
    return None if kind.lacks(subject) is not None else kind.explain(subject)
