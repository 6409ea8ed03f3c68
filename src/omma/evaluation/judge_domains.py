"""The evaluation of a model from one domain to another, the same for the model and its floors."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float

from omma.core.progress import StageProgress
from omma.core.protocols import Images
from omma.core.words import enumerated
from omma.data.sources import domains as sources
from omma.data.sources import groups as grouping
from omma.evaluation import domains, notes, shift
from omma.evaluation.domains import Compared
from omma.evaluation.job import Job, conditions_of, features_of_all, readable_rows, vectors_of
from omma.evaluation.score import Subject
from omma.evaluation.shift import Answers, Key, Protocol
from omma.evaluation.shift_table import About, Shift


def by_domains(
    job: Job, name: str, by: str | None, protocol: Protocol, alignment: str, group: str | None
) -> Shift:
    """Probes of each domain on each, by features of the model, of it untrained, and of raw pixels.

    by: the column of domains; None: the first folders. group: the column of groups (`groups.of`). name: of
    the model. Raises ValueError where there are no two domains with two classes in common.
    """
    field = field_of(job.images, by, group)
    features = features_of_all(job, job.images.subset(field.rows))
    readable = readable_rows(features)
    field = field.readable(readable)
    rows = domains.tested(domains.pairs_of(job.images, field, job.seed, group is not None)[0])
    tested, few = field.rows[rows], domains.few_groups(field, rows)
    conditions = conditions_of("trained", features["trained"], job.model.preprocess)
    skipped = dict((*getattr(job.images, "skipped", ()), *features["trained"].bad))
    about = About(
        model=name,
        digest=job.model.digest,
        data=job.source,
        features=f"{conditions['layer']} layer, {conditions['pooling']} features in "
        f"{conditions['precision']}; {conditions['crop']}",
        notes=tuple(dict.fromkeys((*notes.notes(job, tested, skipped), *field.notes, *[few] * bool(few)))),
        skipped=tuple((str(path), str(reason)) for path, reason in skipped.items()),
    )
    vectors: dict[Subject, np.ndarray] = {
        subject: vectors_of(each, readable) for subject, each in reversed(features.items())
    }
    return measured(
        job.images,
        field,
        vectors,
        about,
        protocol=protocol,
        alignment=alignment,
        seed=job.seed,
        device=job.device if job.device.type == "cuda" else torch.device("cpu"),
        progress=job.progress,
        asked=group is not None,
    )


def field_of(images: Images, by: str | None, group: str | None = None, option: str = "--by") -> Compared:
    """The images that are compared. option: names the column in messages. Raises ValueError."""
    return domains.comparable(images, sources.of(images, by, option), grouping.of(images, group))


def measured(
    images: Images,
    field: Compared,
    vectors: Mapping[Subject, Float[np.ndarray, "n d"]],
    about: About,
    *,
    protocol: Protocol = "linear",
    alignment: str = "",
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: StageProgress | None = None,
    asked: bool = False,
) -> Shift:
    """The result by features of the field's images. asked: whether the groups were named by the user."""
    pairs, parts = domains.pairs_of(images, field, seed, asked)
    answered: dict[Key, Answers] = {}
    for subject, x in vectors.items():
        for each in dict.fromkeys(("", alignment if subject == "trained" else "")):
            stage = f"probes on {subject}" + f", {each}" * bool(each)
            answered[subject, each] = shift.answers(
                x, field, pairs, protocol=protocol, alignment=each, seed=seed, device=device,
                progress=partial(progress, stage) if progress else None,
            )  # fmt: skip
    matrices, gains = shift.figures(answered, field, seed)
    if alone := next(iter(answered.values())).by_image:
        note = (
            f"no class of {enumerated(alone)} has train images in two groups by {field.grouped}: penalties "
            "are chosen on held-out images of groups that probes are fitted on"
        )
        about = replace(about, notes=(*about.notes, note))
    tested = domains.tested(pairs)
    own = [field.labels[tested][field.domains[tested] == k] for k in range(len(field.names))]
    return Shift(
        about=about,
        by=field.by,
        domains=field.names,
        classes=field.classes,
        images=np.array([len(labels) for labels in own]),
        largest=tuple(float(np.bincount(labels).max() / len(labels)) for labels in own),
        probe=protocol,
        alignment=alignment,
        matrices=tuple(matrices),
        gains=tuple(gains),
        split=f"{parts}, seed {seed}",
    )
