"""An extension of griffe: a field's comment at the end of its line is its description in the reference."""

import griffe


class FieldComments(griffe.Extension):
    """`rows: int  # images that were read` is documented as "images that were read"."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: object) -> None:
        if attr.docstring is not None or attr.lineno is None or not isinstance(attr.filepath, griffe_path):
            return
        line = attr.filepath.read_text().splitlines()[attr.lineno - 1]
        _, mark, comment = line.partition("  # ")
        if mark:
            attr.docstring = griffe.Docstring(comment, parent=attr)


griffe_path = type(__import__("pathlib").Path())
