"""Commands that train: `omma pretrain`, and `omma demo`, which judges too."""

import dataclasses
import functools
import importlib
import inspect
import operator
import shlex
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, NoneType
from typing import Annotated, Any, get_args, get_origin

import tyro

from omma.cli import early
from omma.cli.judge import evaluate
from omma.cli.live import Listener, end
from omma.cli.shared import MODE, As_, Dotted, Images_, Output, Planned, finished, say
from omma.cli.stages import Stages
from omma.core import launcher
from omma.core.duration import seconds
from omma.pretraining.request import Request, option_fields

METAVARS = {"label_depth": "INT|path", "group": "COLUMN", "budget": "TIME", "init": "MODEL", "out": "FOLDER"}


def _parameter(field: dataclasses.Field[Any]) -> inspect.Parameter:
    """A field as an option of the command line: paths are text, None is no value, and functions are named."""
    choices = () if get_origin(field.type) is tuple else get_args(field.type)
    kinds: list[Any] = [
        kind for kind in choices or (field.type,) if kind is not Path and get_origin(kind) is not Callable
    ]
    kind: Any = functools.reduce(operator.or_, [kind for kind in kinds if kind is not NoneType])
    if field.name == "architecture":
        kind = As_
    elif field.default is None:
        metavar = METAVARS.get(field.name, kind.__name__.upper() if isinstance(kind, type) else "VALUE")
        kind = Annotated[kind | None, tyro.conf.arg(metavar=metavar)]
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=kind
    )


def as_command(request: type, **positional: Any) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Give a function the fields of `request` as options, as the parser of the command line reads them.

    positional: the types of those that are words without a flag.
    """

    def decorate(function: Callable[..., int]) -> Callable[..., int]:
        words = [
            inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=kind)
            for name, kind in positional.items()
        ]
        hidden = inspect.Parameter("dotted", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Dotted)
        fields = [field for field in option_fields(request) if field.name not in positional]
        parameters = [*words, *map(_parameter, fields), hidden]
        setattr(function, "__signature__", inspect.Signature(parameters))  # noqa: B010
        function.__annotations__ = {p.name: p.annotation for p in parameters}
        function.__doc__ = (request.__doc__ or "").replace("Attributes:", "Args:")
        return function

    return decorate


@as_command(Request, images=Images_)
def pretrain(dotted: Dotted = None, **options: Any) -> int:
    """Its signature and help are the fields of `Request`; dotted: `--method.KEY`, `--model.KEY`, ..."""
    own = dotted or {}
    return _pretrain(
        **options, options=own.get("method"), model_options=own.get("model"), adapt_options=own.get("adapt")
    )


def _pretrain(**options: Any) -> int:
    early.pretraining(Request(**options))
    return trained("pretrain", **options)


def trained(command: str, **options: Any) -> int:
    """Call the verb of this name, print what it reports, and return the exit status."""
    first = launcher.ranks().rank == 0  # of several processes one speaks
    with Listener(f"reading {options['images']} ...", Output(quiet=not first)) as listener:
        from omma.core.device import keep_memory, share_cores

        module = importlib.import_module(f"omma.verbs.{command}")
        keep_memory()
        share_cores()
        if MODE.plan_only:
            return finished(_planned(module, listener, options))
        result = getattr(module, command)(**options, listen=listener)
    if first:
        judge = f"omma evaluate {shlex.quote(str(result.out))} LABELLED   (images in a folder a class)"
        end(result, judge if command == "pretrain" else "")
    return finished(result, 0 if result.stopped_by is None else 128 + result.stopped_by)


def _planned(module: ModuleType, listener: Listener, options: dict[str, Any]) -> Any:
    """The plan of a run, which the listener prints; of what is fitted, not trained, that of the words."""
    if options.get("adapt") in getattr(module, "WAYS", {}):
        listener.stages.stop()
        raise Planned
    plan = module.plan(**options, listen=listener)
    say("nothing was trained or written: --plan-only", console=listener.console)
    return plan


def demo(budget: str = "150s", out: str = "runs/demo", seed: int = 0) -> int:
    """The main job on embedded data: pretrain, evaluate, report, in some four minutes.

    Handwritten digits at random places on textures of photographs, 32 px: only their shape tells them apart.

    Args:
        budget: Time for pretraining.
        out: Run folder.
        seed: Of data and training.
    """
    seconds(budget)
    from omma.verbs import demo as verb

    with Stages(f"making images of digits in {out} ..."):
        data = str(verb.images(out, seed))
    flags = " ".join(f"--method.{key} {value}" for key, value in verb.OPTIONS.items())
    command = f"$ omma pretrain {data} --out {out} --budget {budget} --method {verb.METHOD} {flags}"
    say(command, style="bold")
    code = _pretrain(images=data, method=verb.METHOD, out=out, budget=budget, seed=seed, options=verb.OPTIONS)
    if code:
        return code
    trained = MODE.result
    say(f"\n$ omma evaluate {out} {data}", style="bold")
    code = evaluate(out, data, seed=seed)
    return finished({"pretrain": trained, "evaluate": MODE.result}, code)
