"""`omma describe`: sentences about classes by a language model, as a file that zero-shot reads."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from omma.adaptation import describe as describing
from omma.core import device as devices
from omma.core import files, outputs
from omma.core.errors import line
from omma.core.explain import translated
from omma.core.notebook import Displayed
from omma.core.protocols import ImageSource
from omma.data.sources import collection
from omma.data.sources.layout import LabelDepth
from omma.evaluation import zeroshot


@dataclass(frozen=True)
class Described(Displayed):
    """What was written."""

    path: Path
    made: int  # classes described now ...
    sentences: int  # ... in so many sentences
    kept: int  # classes that the file described before


@translated()
def describe(
    classes: ImageSource,
    language_model: str | Path,
    out: str | Path,
    *,
    questions: str | Path | None = None,
    answers: int = 10,
    temperature: float = describing.TEMPERATURE,
    label_depth: LabelDepth | None = None,
    device: str = "auto",
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Described:
    """Write what a language model says of each class to `out`, JSON: {"class": ["sentence", ...]}.

    classes: labelled images, or a .txt file with a name on each line. language_model: a folder of
    transformers, a .gguf file or `hf:ORG/NAME`. questions: a file of questions, one a line, {} in place of
    "a dog". answers: sampled for each question; at temperature 0 there is one. progress: classes described,
    and in all. The file is written after each class; those that it describes already are kept as they are.
    Raises ValueError.
    """
    if answers < 1 or temperature < 0:
        raise ValueError(
            f"answers={answers}, temperature={temperature}: at least 1 answer, at a temperature from 0"
        )
    outputs.check_file(out)
    asked = describing.QUESTIONS if questions is None else zeroshot.read_templates(questions)
    path = Path(out)
    described = zeroshot.read_descriptions(path) if path.exists() else {}
    before, known = len(described), zeroshot.by_words(described)
    missing = [name for name in _names(classes, label_depth) if zeroshot.key(name) not in known]
    made = 0
    if missing:
        model = describing.load(str(language_model), devices.pick_device(device))
        for done, name in enumerate(missing):
            if progress:
                progress(done, len(missing))
            described[name] = describing.sentences(
                model, name, asked, answers=answers, temperature=temperature, seed=seed
            )
            made += len(described[name])
            with files.atomic_write(path) as file:
                file.write_text(json.dumps(described, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return Described(path, len(missing), made, before)


def _names(classes: ImageSource, label_depth: LabelDepth | None) -> tuple[str, ...]:
    """Names of the classes, each once; ValueError if there are none."""
    if isinstance(classes, str | Path) and Path(classes).suffix == ".txt":
        try:
            lines = files.decode_text(Path(classes).read_bytes()).splitlines()
        except (OSError, ValueError) as error:
            raise ValueError(f"{classes}: cannot be read ({line(error)}); give a UTF-8 text") from None
        names = tuple(dict.fromkeys(each.strip() for each in lines if each.strip()))
    else:
        names = collection.opened(classes, label_depth).classes
    if not names:
        name = collection.named(classes)
        raise ValueError(f"{name} names no classes: give labelled images, or a .txt with a name a line")
    return names
