"""Read the words of a command: help keeps to the terminal's width, and what is wrong is one line."""

import contextlib
import functools
import io
import re
import shutil
import textwrap
from collections.abc import Callable, Iterator, Mapping

import tyro

EVERYWHERE = (
    "Every command also takes --json FILE (write what it found; - for standard output), --quiet (print "
    "errors alone), --plan-only (say what would be done, and do nothing), --remote (fetch addresses, such as "
    "https://, that a table of images names) and --debug (print the traceback behind an error). omma "
    "pretrain and finetune take --config RUN/config.json, which repeats a run; options beside it win. omma "
    "--completion bash (zsh, fish) prints a script that completes words."
)
_RULE = re.compile(r"[─\-\s]*")
_NO_VALUE = re.compile(r"no type matching (?:\{None\}\|)?(.+) could be instantiated from \['?(.*?)'?\]\.?$")


def parse(
    commands: Mapping[str, Callable[..., int]], words: list[str], description: str | None
) -> "functools.partial[int]":
    """The command that the words name, with its arguments. Raises ValueError for words that it does not take.

    Prints help where it is asked for, and ends by SystemExit.
    """
    noted = {name: _noted(command) for name, command in commands.items()}
    said = io.StringIO()
    with _wrapped_help() if {"-h", "--help"} & {*words} else contextlib.nullcontext():
        try:
            with contextlib.redirect_stderr(said):
                return tyro.extras.subcommand_cli_from_dict(
                    noted, args=words, prog="omma", description=description
                )
        except SystemExit as end:
            if not end.code:
                raise
    explains = f"omma {words[0]} --help" if words[0] in commands else "omma --help"
    wrong = refusal(said.getvalue()).rstrip(".")
    raise ValueError(f"{wrong}{'' if wrong.endswith('?') else ';'} `{explains}` explains what there is")


def _noted(command: Callable[..., int]) -> Callable[..., "functools.partial[int]"]:
    @functools.wraps(command)
    def note(*args: object, **options: object) -> "functools.partial[int]":
        return functools.partial(command, *args, **options)

    return note


def refusal(box: str) -> str:
    """The parser's words about a mistake, a box of several lines, in one line."""
    lines = box.splitlines()
    lines = lines[1:-1] if box.startswith("╭") else lines[2:]  # the title; in ASCII there is no border
    rows = [line[2:].rstrip(" │") for line in lines]
    sections: list[list[str]] = [[]]
    for row in rows:
        if _RULE.fullmatch(row):
            sections.append([])
        elif not row.startswith(" " * 8):  # the sentence on an option
            sections[-1].append(row.strip())
    first, *others = [" ".join(section) for section in sections if section] or [box]
    parts = [_NO_VALUE.sub(r"'\2' is no \1", first.removeprefix("Error parsing "))]
    for section in others:
        if section.startswith("Perhaps"):
            similar = list(dict.fromkeys(re.findall(r"--[\w.-]+", section)))
            elsewhere = [option for option in similar if option in parts[0].split()]
            if elsewhere:
                parts.append(f"{elsewhere[0]} is an option of another command")
            else:
                parts.append(f"did you mean {' or '.join(similar[:3])}?")
        elif section.startswith("Unrecognized"):
            parts.append(section)
    return "; ".join(" ".join(part.split()) for part in parts)


@contextlib.contextmanager
def _wrapped_help() -> Iterator[None]:
    """Wrap the lines of a help text that the parser leaves longer than the terminal, and add `EVERYWHERE`."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    finally:
        width = shutil.get_terminal_size().columns
        for line in printed.getvalue().splitlines():
            indent = " " * len("usage: omma ") if line.startswith("usage:") else ""
            print(textwrap.fill(line, width, subsequent_indent=indent, break_on_hyphens=False))
        print(textwrap.fill(EVERYWHERE, width, break_on_hyphens=False))
