"""Lines and tables keep to the width, the terminal and the encoding that they are printed on."""

import io
import sys

import pytest
from rich.console import Console

from omma import cli
from omma.cli import judge, shared
from omma.cli.stages import Stages
from omma.evaluation.score import Score
from omma.evaluation.verdict import Evaluation

SENTENCE = "supercalifragilistic words of all lengths, each of which stays whole wherever a line ends " * 3


def lines(monkeypatch, width, print_):
    """What is printed on a console: on a terminal of that width, or where no width is known (None)."""
    monkeypatch.delenv("COLUMNS", raising=False)
    stream = io.StringIO()
    console = Console(
        file=stream, force_terminal=width is not None, width=width, highlight=False, color_system=None
    )
    print_(console)
    return stream.getvalue().splitlines()


@pytest.mark.parametrize("width", [60, 80, 200])
def test_lines_wrap_at_words_beside_their_label(monkeypatch, width):
    told = lines(monkeypatch, width, lambda console: shared.say(SENTENCE, "views", console=console))
    assert max(map(len, told)) <= width
    assert told[0].startswith("views      super")
    assert all(line.startswith(" " * 11) and line[11] != " " for line in told[1:])
    assert " ".join(line[11:] for line in told).split() == SENTENCE.split()


def test_without_a_terminal_lines_stay_whole(monkeypatch):
    assert lines(monkeypatch, None, lambda console: shared.say(SENTENCE, "views", console=console)) == [
        "views      " + SENTENCE
    ]


@pytest.mark.parametrize("hostile", ["[/x] and [bold]", "a\x1b[31mred\x07", "bell\udc80"])
def test_what_users_wrote_is_printed_as_it_is(monkeypatch, hostile):
    told = lines(monkeypatch, 80, lambda console: shared.say(f"written to {hostile}", console=console))
    assert told == [f"written to {shared.printable(hostile)}"]
    assert all(c.isprintable() for c in told[0])


def test_characters_that_the_stream_lacks_become_escapes(monkeypatch):
    for encoding, expected in (("ascii", "\\xe9\\u2026"), ("utf-8", "é…")):
        raw = io.BytesIO()
        stream = io.TextIOWrapper(raw, encoding=encoding)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stream)
            shared.tolerant_streams()
            Console().print("é…")
            stream.flush()
        assert raw.getvalue().decode(encoding).strip() == expected


def evaluation():
    scores = [
        Score(
            subject=subject, protocol=protocol, value=0.5, interval95=(0.412, 0.588), crop="c", split="s",
            seed=0, n_train=5, n_test=5, classes=2, majority=0.5, **more,
        )
        for subject in ("pixels", "untrained", "trained")
        for protocol, more in (("knn", {"k": 20, "T": 0.07}), ("linear", {}))
    ]  # fmt: skip
    return Evaluation(
        model="m", digest="0", data="d", results=tuple(scores), comparisons=(), notes=(), skipped=()
    )


@pytest.mark.parametrize("width", [60, 80, 200, None])
def test_the_table_keeps_its_columns_and_numbers_whole(monkeypatch, width):
    told = lines(monkeypatch, width, lambda console: judge._print_evaluation(evaluation(), console))
    if width is not None:
        assert max(map(len, told)) <= width
    text = "\n".join(told)
    assert text.count("(41.2 to 58.8)") == 6
    assert text.count("50.0 %") >= 6
    rows = [line for line in told if "(41.2 to 58.8)" in line]
    assert len({tuple(i for i, c in enumerate(line) if c == ")")[-3:] for line in rows}) == 1  # aligned


def test_stages_are_lines_where_nothing_can_be_redrawn(monkeypatch):
    """The first at once, counts now and then; on a dumb terminal, too."""
    clock = iter([0.0, 0.1, 2.5, 3.0, 8.0, 8.1, 9.0])
    monkeypatch.setattr("omma.cli.stages.time.monotonic", lambda: next(clock))
    monkeypatch.setenv("TERM", "dumb")

    def print_(console):
        with Stages("reading photos ...", console) as stages:
            stages("loading")  # too soon after the first line
            for done in (64, 128, 1_000, 1_064):
                stages("checking images", done, 2_000)
            stages("checking images", 2_000, 2_000)

    told = lines(monkeypatch, 80, print_)
    assert told == ["reading photos ...", "checking images: 64 of 2,000", "checking images: 1,000 of 2,000"]


@pytest.mark.report
def test_a_report_that_fails_leaves_the_figures(capsys, monkeypatch, tmp_path):
    """One line says so, and the exit status is that of the evaluation."""
    from omma.pretraining.folder import RunFolder
    from omma.reporting import run_report
    from omma.verbs import evaluate as verb

    monkeypatch.delenv("COLUMNS", raising=False)  # which pytest-xdist sets
    (tmp_path / "metrics.jsonl").touch()
    (tmp_path / "model.safetensors").touch()
    monkeypatch.setattr(verb, "evaluate", lambda *_, **__: evaluation())

    def fail(folder: RunFolder, *_):
        raise KeyError("what nobody thought of")

    monkeypatch.setattr(run_report, "write_report", fail)
    with pytest.raises(SystemExit) as stop:
        cli.main(["evaluate", str(tmp_path), str(shared.__file__).replace("shared.py", "models.csv")])
    told = capsys.readouterr()
    assert stop.value.code == 0
    assert told.out.count("(41.2 to 58.8)") == 6
    assert told.out.splitlines()[-1].startswith("the report was not written (")
