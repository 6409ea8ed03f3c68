"""Tests of maps: does a map depend on what the network has learned, and on what the answer rests on?"""

from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module

from omma.inspection.kinds import Explanation, Kind, Subject

TESTS = {"sanity": "sanity", "insertion": "faithfulness"}  # name on the command line, and file


def known(names: Sequence[str]) -> None:
    """Raise ValueError for a test that does not exist."""
    for name in names:
        if name not in TESTS:
            raise ValueError(f"--test {name}: there is no such test: choose {' or '.join(TESTS)}")


def applied(
    name: str, kinds: Sequence[Kind], explanations: Sequence[Explanation], subject: Subject
) -> list[Explanation]:
    """The explanations, with each kind's result below its pictures, and after them the test's own section.

    Kinds that give no single map are not tested. Raises ValueError if that leaves none.
    """
    tested = [kind for kind in kinds if kind.one_map is not None]
    if not tested:
        raise ValueError(
            f"--test {name}: none of {', '.join(kind.name for kind in kinds)} gives one map an image"
        )
    section, sentences = import_module(f"omma.inspection.{TESTS[name]}").test(tested, subject)
    said = []
    for kind, explanation in zip(kinds, explanations):
        sentence = sentences.get(kind.name)
        caption = explanation.caption if sentence is None else f"{explanation.caption} {sentence}"
        said.append(replace(explanation, caption=caption))
    return [*said, *explanations[len(kinds) :], section]
