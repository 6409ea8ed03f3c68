"""Tiny-ImageNet's way to label a part without class folders: a val_annotations.txt beside its images."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from omma.core.protocols import BadImage
from omma.core.words import count
from omma.data.sources.labels import Annotations

NAME = "val_annotations.txt"  # lines of a file's name, its class and a box, separated by tabs


def add(
    annotations: Annotations, paths: Sequence[str], files: Sequence[str], read: Callable[[str], bytes]
) -> Annotations:
    """Label unlabelled images that one of `files`, each a val_annotations.txt, names.

    Classes are those that other folders have; a file names images beside it or in images/ there.
    """
    if annotations.labels is None or not files:
        return annotations
    code = {name: k for k, name in enumerate(annotations.classes)}
    row = {path: k for k, path in enumerate(paths)}
    labels, notes = annotations.labels.copy(), list(annotations.notes)
    for file in files:
        folder = file.rpartition("/")[0]
        bare, named = f"{folder.rpartition('/')[2]}/ has no ", 0
        try:
            text = read(file).decode("utf-8", "replace")
        except BadImage as error:
            notes.append(f"{file} is not used: {error}")
            continue
        lines = [line.split("\t") for line in text.splitlines() if line.strip()]
        for name, *rest in lines:
            inside = f"{folder}/images/{name}", f"{folder}/{name}"
            k = next((row[path] for path in inside if path in row), None)
            if k is not None and labels[k] < 0 and rest and rest[0] in code:
                labels[k] = code[rest[0]]
                named += 1
        notes = [note for note in notes if not named or not note.startswith(bare)]
        if named < len(lines):
            notes.append(
                f"{file}: of {count(len(lines), 'line')}, {len(lines) - named:,} name an image that "
                "is not here, or a class that no other part has"
            )
    return replace(annotations, labels=labels, notes=tuple(notes))
