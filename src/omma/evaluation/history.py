"""The evaluations of a run, in one file of its folder: the last one, and earlier ones of other conditions."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from omma.core import files
from omma.core.errors import line
from omma.evaluation.verdict import Evaluation

EARLIER = "earlier"  # the key of the earlier evaluations, newest first; the other keys are the last one's
PATIENCE = 30.0  # seconds to wait for another process that writes the file


def read(file: Path) -> list[dict[str, Any]]:
    """The evaluations in the file, as `Evaluation.to_json` writes them, newest first; none if it is absent.

    Raises ValueError, in one line, for a damaged file.
    """
    try:
        last = json.loads(file.read_text(encoding="utf-8"))
        every = [last, *last.pop(EARLIER, ())]
        for each in every:
            if not all(isinstance(result, dict) and "value" in result for result in each["results"]):
                raise ValueError("a result has no value")
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{file} is damaged ({line(error)}): delete it, and `omma evaluate` writes it again"
        ) from error
    return every


def record(file: Path, evaluation: Evaluation) -> Evaluation:
    """Add an evaluation to the file; returns it with a note if that fails, since its figures stay true.

    It replaces those whose results it repeats: same data, weights, protocols and conditions.
    """
    new = evaluation.to_json()
    try:
        with FileLock(file.with_name(f".{file.name}.lock"), timeout=PATIENCE):
            earlier = [old for old in _read_or_set_aside(file) if not _repeats(new, old)]
            with files.atomic_write(file) as partial:
                content = {**new, EARLIER: earlier} if earlier else new
                partial.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    except (OSError, ValueError) as error:  # filelock's timeout is an OSError
        why = getattr(error, "strerror", None) or line(error)
        note = f"not recorded in {file} ({why}): --json FILE keeps the figures elsewhere"
        return dataclasses.replace(evaluation, notes=(*evaluation.notes, note))
    return evaluation


def _read_or_set_aside(file: Path) -> list[dict[str, Any]]:
    try:
        return read(file)
    except ValueError:
        os.replace(file, file.with_name(f"{file.name}.damaged"))
        return []


def _repeats(new: Mapping[str, Any], old: Mapping[str, Any]) -> bool:
    """Does the new evaluation hold every result of the old one, measured on the same data again?"""
    same = all(new.get(key) == old.get(key) for key in ("data", "digest"))
    return same and _conditions(old) <= _conditions(new)


def _conditions(evaluation: Mapping[str, Any]) -> set[str]:
    """What each result was measured under: all of it but what came out."""
    outcome = ("value", "interval95", "balanced_accuracy", "settings")
    return {
        json.dumps({key: value for key, value in result.items() if key not in outcome}, sort_keys=True)
        for result in evaluation["results"]
    }
