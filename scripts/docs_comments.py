"""An extension of griffe: what comments and prose say of fields and parameters is a list in the reference."""

import re
from pathlib import Path

import griffe

MARKS = ("type:", "noqa", "fmt:", "pyright:")


class FieldComments(griffe.Extension):
    """Fields of a class by the comments behind them; parameters of a function by its docstring."""

    def on_class_members(self, *, cls: griffe.Class, **others: object) -> None:
        """`rows: int  # images that were read` becomes `rows: images that were read` in the docstring."""
        path = cls.filepath
        if cls.docstring is None or "Attributes:" in cls.docstring.value or not isinstance(path, Path):
            return
        lines = ["", *path.read_text().splitlines()]
        fields = []
        for field in cls.attributes.values():
            number = field.lineno or 0
            if field.is_private or field.annotation is None or not 0 < number < len(lines):
                continue
            if "property" not in field.labels:
                comment = lines[number].partition("  # ")[2]
                fields.append(f"    {field.name}: {'' if comment.startswith(MARKS) else comment}")
        if fields:
            cls.docstring.value += "\n".join(["\n\nAttributes:", *fields])

    def on_function(self, *, func: griffe.Function, **others: object) -> None:
        """`top: classes an image. error: share of ...` becomes a list of both."""
        if func.docstring is None or "Args:" in func.docstring.value:
            return
        text = func.docstring.value
        names = {parameter.name for parameter in func.parameters}

        def entry(found: re.Match[str]) -> str:
            if not names.issuperset(found[1].split(", ")):
                return found[0]
            return f"\n\n- `{found[1]}`: "

        text = re.sub(r"(?:^[ ]*|(?<=\. )|(?<=\.\n))((?:\w+)(?:, \w+)*): ", entry, text, flags=re.MULTILINE)
        if "\n\n- `" in text:
            text = re.sub(r"(?<=[.)])\s+(?=(?:Raises|Others:) )", "\n\n", text)
        func.docstring.value = text
