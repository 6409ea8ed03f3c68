"""omma: from a folder of images, without labels, to a vision model that you can trust.

Pretrain a network on your images, evaluate it beside its untrained self, and use it: embed images as vectors,
export it to other tools. Try it first on built-in data: omma demo. `omma COMMAND --help` explains a command.
"""

import contextlib
import difflib
import functools
import io
import re
import shutil
import sys
import textwrap
import traceback
import warnings
from collections.abc import Iterator

import tyro

from omma.cli.about import doctor, methods, models
from omma.cli.judge import evaluate, report
from omma.cli.shared import tolerant_streams
from omma.cli.train import demo, pretrain
from omma.cli.use import embed, export
from omma.core import files, launcher
from omma.core.errors import AlreadyReported

COMMANDS = {
    "pretrain": pretrain,
    "evaluate": evaluate,
    "embed": embed,
    "export": export,
    "report": report,
    "methods": methods,
    "models": models,
    "doctor": doctor,
    "demo": demo,
}


def _dotted(arguments: list[str]) -> tuple[list[str], dict[str, dict[str, str]]]:
    """Take `--method.KEY VALUE`, `--method.KEY=VALUE` and the same of `--model` out of the arguments."""
    rest: list[str] = []
    options: dict[str, dict[str, str]] = {"method": {}, "model": {}}
    words = iter(arguments)
    for word in words:
        match = re.fullmatch(r"--(method|model)\.([\w-]+)(?:=(.*))?", word, re.DOTALL)
        if match is None:
            rest.append(word)
            continue
        value = match[3] if match[3] is not None else next(words, None)
        if value is None:
            raise ValueError(f"{word}: a value must follow")
        options[match[1]][match[2].replace("-", "_")] = value
    return rest, options


def _complete(words: list[str]) -> list[str]:
    """Help where nothing is asked for; ValueError for an unknown command, with those of a similar name."""
    if not words:
        return ["--help"]
    if words[0] == "--version":
        print(f"omma {files.omma_version()}")
        sys.exit(0)
    if not words[0].startswith("-") and words[0] not in COMMANDS:
        close = difflib.get_close_matches(words[0], COMMANDS, n=2)
        told = f"did you mean {' or '.join(close)}?" if close else f"choose among {', '.join(COMMANDS)};"
        raise ValueError(f"{words[0]!r} is no command: {told} `omma --help` explains them")
    return words


@contextlib.contextmanager
def _wrapped_help() -> Iterator[None]:
    """Wrap the lines of a help text that the parser leaves longer than the terminal."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    finally:
        width = shutil.get_terminal_size().columns
        for line in printed.getvalue().splitlines():
            indent = " " * len("usage: omma ") if line.startswith("usage:") else ""
            print(textwrap.fill(line, width, subsequent_indent=indent, break_on_hyphens=False))


def main(arguments: list[str] | None = None) -> None:
    """Run one command; errors that the user can mend are one line and exit status 2."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [w for w in words if w != "--debug"]
    # Pillow warns of images past 89 million pixels; those that omma leaves out, twice that, are listed
    warnings.filterwarnings("ignore", message="Image size .* could be decompression bomb")
    tolerant_streams()
    speaks = True
    try:
        words = _complete(words)
        here = launcher.ranks()
        first = speaks = here.rank == 0  # until processes have met, what fails on one fails on all
        if here.world_size > 1 and words[:1] not in (["pretrain"], ["embed"]):
            raise ValueError(
                "only `omma pretrain` and `omma embed` run on several processes: start others by themselves"
            )
        words, options = _dotted(words)
        for flag, given in options.items():
            if given and words[:1] != ["pretrain"]:
                raise ValueError(f"--{flag}.KEY is an option of `omma pretrain`")
        commands = {**COMMANDS, "pretrain": functools.partial(pretrain, dotted=options)}
        speaks = True
        with _wrapped_help() if {"-h", "--help"} & {*words} else contextlib.nullcontext():
            code = tyro.extras.subcommand_cli_from_dict(
                commands, args=words, prog="omma", description=__doc__, console_outputs=first
            )
    except (ValueError, OSError) as error:
        if debug:
            traceback.print_exc()
        if speaks and not isinstance(error, AlreadyReported):
            print(f"omma: {' '.join(str(error).split())}", file=sys.stderr)
        code = 2
    sys.exit(code)
