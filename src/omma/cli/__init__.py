"""omma: from a folder of images, without labels, to a vision model that you can trust.

Pretrain a network on your images, evaluate it beside its untrained self, and use it: embed images as vectors,
export it to other tools. Try it first on built-in data: omma demo. `omma COMMAND --help` explains a command.
"""

import contextlib
import difflib
import errno
import inspect
import logging
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from omma.cli import completion, everywhere
from omma.cli.about import doctor, methods, models
from omma.cli.adapt import finetune, predict
from omma.cli.clean import clean
from omma.cli.curate import curate
from omma.cli.explain import explain as explain_
from omma.cli.explore import explore
from omma.cli.find import index, search
from omma.cli.judge import evaluate, report
from omma.cli.parser import parse
from omma.cli.serve import serve
from omma.cli.shared import discard_output, tolerant_streams
from omma.cli.shift import shift
from omma.cli.train import demo, pretrain
from omma.cli.use import describe, embed, export
from omma.core import files, launcher
from omma.core.errors import AlreadyReported, printable
from omma.core.explain import explain

COMMANDS = {
    "pretrain": pretrain,
    "finetune": finetune,
    "predict": predict,
    "evaluate": evaluate,
    "shift": shift,
    "embed": embed,
    "export": export,
    "explore": explore,
    "explain": explain_,
    "index": index,
    "search": search,
    "clean": clean,
    "curate": curate,
    "serve": serve,
    "describe": describe,
    "report": report,
    "methods": methods,
    "models": models,
    "doctor": doctor,
    "demo": demo,
}

SEVERAL = (
    "--protocol",
    "--train-on",
    "--test-on",
    "--apply",
    "--remove",
    "--what",
    "--test",
    "--layers",
    "--heads",
    "--minus",
)  # options of several values


def _dotted(arguments: list[str]) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Take `--method.KEY VALUE`, `--method.KEY=VALUE`, and those of --model, --adapt out of the arguments."""
    rest: list[str] = []
    options: dict[str, dict[str, Any]] = {"method": {}, "model": {}, "adapt": {}}
    words = iter(arguments)
    for word in words:
        match = re.fullmatch(r"--(method|model|adapt)\.([\w-]+)(?:=(.*))?", word, re.DOTALL)
        if match is None:
            rest.append(word)
            continue
        value = match[3] if match[3] is not None else next(words, None)
        if value is None:
            raise ValueError(f"{word}: a value must follow")
        options[match[1]][match[2].replace("-", "_")] = value
    return rest, options


def _gathered(words: list[str]) -> list[str]:
    """`--train-on A --train-on B` as `--train-on A B`; the parser would take the last one alone."""
    groups: list[list[str]] = [[]]
    several: dict[str, list[str]] = {}
    current = groups[0]
    for word in words:
        option, equals, value = word.partition("=")
        if option in SEVERAL:
            if option not in several:
                several[option] = [option]
                groups.append(several[option])
            current = several[option]
            current += [value] if equals else []
            continue
        if word.startswith("--"):
            current = []
            groups.append(current)
        current.append(word)
    return [word for group in groups for word in group]


def _complete(words: list[str]) -> list[str]:
    """Help where nothing is asked for; ValueError for an unknown command, with those of a similar name."""
    if not words:
        return ["--help"]
    if words[0] == "--version":
        print(f"omma {files.omma_version()}")
        sys.exit(0)
    if words[0] == "--completion":
        print(completion.script(COMMANDS, "".join(words[1:2]), everywhere.TRAINS), end="")
        sys.exit(0)
    if not words[0].startswith("-") and words[0] not in COMMANDS:
        close = difflib.get_close_matches(words[0], COMMANDS, n=2)
        hint = f"did you mean {' or '.join(close)}?" if close else f"choose among {', '.join(COMMANDS)};"
        raise ValueError(f"{words[0]!r} is no command: {hint} `omma --help` explains them")
    return words


def main(arguments: list[str] | None = None) -> None:
    """Run one command; errors that the user can mend are one line and exit status 2."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    _prepare()
    if "--remote" in words:
        os.environ["OMMA_REMOTE"] = "1"  # for processes that this one starts, too
    words = [word for word in words if word not in ("--debug", "--remote")]
    with _interrupted_once():
        status = _guarded(lambda: _run(words), debug)
    sys.exit(_guarded(sys.stdout.flush, debug) or status)


def _run(words: list[str]) -> int:
    here = launcher.ranks()
    try:
        words = _complete(words)
        if here.world_size > 1 and words[:1] not in (["pretrain"], ["finetune"], ["embed"]):
            raise ValueError(
                "only `omma pretrain`, `omma finetune` and `omma embed` run on several processes: start "
                "others by themselves"
            )
        own = {name: [*inspect.signature(each).parameters] for name, each in COMMANDS.items()}
        words, said = everywhere.take(words, own)
        words, options = _dotted(_gathered(words))
        if said.config is not None and not {"-h", "--help"} & {*words}:
            words, before = everywhere.repeated(words, COMMANDS[words[0]], said.config)
            options = {flag: before.get(flag, {}) | given for flag, given in options.items()}
        for flag, given in options.items():
            if given and words[:1] not in (["pretrain"], ["finetune"]):
                raise ValueError(f"--{flag}.KEY is an option of `omma pretrain` and `omma finetune`")
        command = parse(COMMANDS, words, __doc__)
    except ValueError as error:  # until processes have met, what fails on one fails on all
        if here.rank:
            raise AlreadyReported(str(error)) from error
        raise
    hidden = {"dotted": options} if command.func in (pretrain, finetune) else {}
    with everywhere.speaking(said):
        return everywhere.run(command, said, **hidden)


# ---------------------------------------------------------------- the boundary of errors
def _guarded(command: Callable[[], int | None], debug: bool) -> int:
    """The command's exit status; every error ends here, as one line unless it is omma's own mistake."""
    try:
        return command() or 0
    except SystemExit as end:  # the parser's: help, or a word that it does not know
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except KeyboardInterrupt:
        text, status = "interrupted", 130
    except BrokenPipeError:  # nobody reads on (`| head -3`)
        discard_output()
        return 0
    except Exception as error:
        text, status = explain(error), 2
        if debug or text is None:
            traceback.print_exc()
        if isinstance(error, AlreadyReported):
            return 2
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EIO) and not _can_print():
            discard_output()
        if text is None:
            text, status = "this is a mistake in omma: please report it with the lines above", 1
    with contextlib.suppress(OSError):  # standard error may be closed
        print(f"omma: {text}", file=sys.stderr)
    return status


@contextlib.contextmanager
def _interrupted_once() -> Iterator[None]:
    """The first Ctrl-C ends the command with one line; a second one kills it, without a traceback."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # ignored (`nohup`), or another's
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is interrupt:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _can_print() -> bool:
    """Whether standard output takes what it still holds (not on a full disk)."""
    try:
        sys.stdout.flush()
    except OSError:
        return False
    return True


def _prepare() -> None:
    """What every command wants of this process."""
    tolerant_streams()
    # Pillow warns of images past 89 million pixels; those that omma leaves out, twice that, are listed
    warnings.filterwarnings("ignore", message="Image size .* could be decompression bomb")
    _allow_open_files()
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_Printable("omma: %(message)s"))


def _allow_open_files(most: int = 65_536) -> None:
    """Raise the soft limit: batches on their way from workers take open files, thousands in large batches."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = most if hard == resource.RLIM_INFINITY else min(hard, most)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):  # macOS has a lower limit than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class _Printable(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))
