"""The command line: parse, call a verb, print."""

import functools
import os
import re
import sys
import traceback
import warnings

import tyro

from omma.cli.about import doctor, methods, models
from omma.cli.judge import evaluate, report
from omma.cli.train import demo, pretrain
from omma.cli.use import embed, export
from omma.core import launcher
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


def main(arguments: list[str] | None = None) -> None:
    """Run one command; errors that the user can mend are one line and exit status 2."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    if "--remote" in words:
        os.environ["OMMA_REMOTE"] = "1"  # for processes that this one starts, too
    words = [w for w in words if w not in ("--debug", "--remote")]
    # Pillow warns of images past 89 million pixels; those that omma leaves out, twice that, are listed
    warnings.filterwarnings("ignore", message="Image size .* could be decompression bomb")
    speaks = True
    try:
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
