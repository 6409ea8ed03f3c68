"""README and docs agree with the package: lists of methods, command lines, paths and links."""

import functools
import io
import re
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from omma import cli, methods

ROOT = Path(__file__).parents[1]
ALL_PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in ALL_PAGES if page.parent.name != "adr"]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())

FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
COMMAND = re.compile(r"(?:^|[\s(])omma ([a-z]+)\b([^|;&]*)")
FLAG = re.compile(r"(?<=\s)--([a-z][\w.-]*)")


def backticked(text: str) -> list[str]:
    """The words in inline code."""
    return re.findall(r"`([^`]+)`", text)


def commands(text: str) -> Iterator[tuple[str, str]]:
    """Each command line of omma in fenced and inline code: the command's name, and what follows it."""
    lines: list[str] = []
    for language, block in FENCE.findall(text):
        if language == "python":
            continue
        lines += [re.sub(r"\s+#.*", "", line) for line in block.replace("\\\n", " ").splitlines()]
    lines += [" ".join(code.split()) for code in INLINE.findall(FENCE.sub("", text))]
    for line in lines:
        yield from COMMAND.findall(line)


@functools.cache
def help_of(command: str = "") -> str:
    """What `omma COMMAND --help` prints; "" for a command that does not exist."""
    printed = io.StringIO()
    with redirect_stdout(printed), redirect_stderr(io.StringIO()), pytest.raises(SystemExit) as stop:
        cli.main([*command.split(), "--help"])
    return printed.getvalue() if stop.value.code == 0 else ""


def flags_of(command: str) -> set[str]:
    return set(re.findall(r"--([a-z][\w-]*)", help_of(command)))


def exists(command: str) -> bool:
    return re.search(rf"\b{command}\b", help_of()) is not None and help_of(command) != ""


def wrong_flags(command: str, rest: str) -> list[str]:
    """Flags of a quoted command line that do not exist."""
    name = re.search(r"--method ([\w]+)", rest)
    method = name[1] if name is not None and name[1] in methods.names() else None
    wrong = []
    for flag in FLAG.findall(rest):
        group, _, key = flag.partition(".")
        key = key.replace("-", "_")
        if flag in ("help", "debug"):
            continue
        if group in ("method", "model", "adapt") and key:
            known = command in ("pretrain", "finetune") and (
                group != "method"
                or method is None
                or key == "KEY"
                or hasattr(methods.get(method).Config(), key)
            )
        else:
            known = flag in flags_of(command)
        if not known:
            wrong.append(flag)
    return wrong


def test_readme_names_every_method_and_no_other() -> None:
    table = (
        (ROOT / "README.md").read_text().partition("## Methods and models")[2].partition("| `omma models`")[0]
    )
    assert sorted(set(backticked(table)) - {"omma methods"}) == methods.names()


def test_the_page_of_methods_has_a_row_for_every_method_and_no_other() -> None:
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "docs" / "methods.md").read_text(), re.MULTILINE)
    assert sorted(name for row in rows for name in backticked(row)) == methods.names()


@each_page
def test_quoted_command_lines_exist(page: Path) -> None:
    problems = []
    for command, rest in commands(page.read_text()):
        if exists(command):
            problems += [f"omma {command}{rest}: no --{flag}" for flag in wrong_flags(command, rest)]
        else:
            problems.append(f"omma {command}: no such command")
    assert problems == []


def test_the_readme_quotes_every_main_command() -> None:
    """And the extraction finds them."""
    quoted = {command for command, _ in commands((ROOT / "README.md").read_text())}
    assert quoted >= {
        "demo",
        "pretrain",
        "evaluate",
        "embed",
        "report",
        "doctor",
        "methods",
        "models",
        "export",
    }


def test_wrong_command_lines_are_found() -> None:
    text = (
        "```\nuv run omma pretrain x \\\n  --budgets 3m  # --json\n```\n`omma embed --no-floors` `omma trane`"
    )
    found = list(commands(text))
    assert [command for command, _ in found] == ["pretrain", "embed", "trane"]
    assert [exists(command) for command, _ in found] == [True, True, False]
    assert [wrong_flags(command, rest) for command, rest in found[:2]] == [["budgets"], ["no-floors"]]
    assert wrong_flags("pretrain", " x --method dino --method.teacher-tempo 1 --method.teacher-temp .1") == [
        "method.teacher-tempo"
    ]
    assert wrong_flags("evaluate", " a b --no-floors --json f --method.k 3") == ["method.k"]


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_relative_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text()))
    local = [target.partition("#")[0] for target in targets if not re.match(r"[a-z]+:", target)]
    assert [target for target in local if target and not (page.parent / target).exists()] == []


@each_page
def test_quoted_paths_exist(page: Path) -> None:
    quoted = re.findall(r"`((?:src|tests|docs|benchmarks|scripts)/[\w./-]+)`", page.read_text())
    assert [path for path in quoted if not (ROOT / path).exists() and "NAME" not in path] == []
