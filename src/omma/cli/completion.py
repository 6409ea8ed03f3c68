"""`omma --completion SHELL`: a script that completes commands and options; paths are left to the shell."""

from collections.abc import Callable, Mapping

import tyro

SHELLS = ("bash", "zsh", "fish")
EVERYWHERE = ("--json", "--quiet", "--plan-only", "--remote", "--debug", "--help")
BASH = """\
_omma() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" options=""
  COMPREPLY=()
  if [[ $COMP_CWORD -eq 1 ]]; then
    options="{commands} --help --version --completion"
  elif [[ "$word" == -* ]]; then
    case "${{COMP_WORDS[1]}}" in
{cases}
    esac
  fi
  [[ -z "$options" ]] || COMPREPLY=($(compgen -W "$options" -- "$word"))
}}
complete -o default -F _omma omma
"""  # -o default: where there is no reply, paths


def script(commands: Mapping[str, Callable[..., int]], shell: str, trains: tuple[str, ...]) -> str:
    """The script; `trains` are the commands that take --config. Raises ValueError for another shell."""
    if shell not in SHELLS:
        raise ValueError(f"--completion: give the shell, {', '.join(SHELLS[:-1])} or {SHELLS[-1]}")
    options = {
        name: [*_options(command), *EVERYWHERE, *(["--config"] if name in trains else [])]
        for name, command in commands.items()
    }
    if shell == "fish":
        return "\n".join(_fish(options)) + "\n"
    cases = "\n".join(f'      {name}) options="{" ".join(each)}" ;;' for name, each in options.items())
    text = BASH.format(commands=" ".join(commands), cases=cases)
    return ("autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else "") + text


def _options(command: Callable[..., int]) -> list[str]:
    parser = tyro.extras.get_parser(command)
    words = [
        word for action in parser._actions for word in action.option_strings
    ]  # argparse tells no other way
    return [word for word in words if word.startswith("--") and word != "--help"]


def _fish(options: Mapping[str, list[str]]) -> list[str]:
    lines = [f"complete -c omma -n __fish_use_subcommand -f -a '{' '.join(options)}'"]
    for name, words in options.items():
        seen = f"complete -c omma -n '__fish_seen_subcommand_from {name}'"
        lines += [f"{seen} -l {word.removeprefix('--')}" for word in words]
    return lines
