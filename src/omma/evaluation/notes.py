"""What to know of an evaluation beside its figures: how images were read, and which were trained on."""

from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Int

from omma.core.words import count
from omma.data.sources.identity import ALL
from omma.data.sources.indexed import IndexedImages
from omma.data.sources.trained_on import TrainedOn
from omma.data.sources.values import input_notes
from omma.evaluation.job import Job


def notes(job: Job, tested: Int[np.ndarray, "m"], skipped: Mapping[str, str]) -> Iterator[str]:
    """What the user must know of the result.

    tested: rows of the test images; skipped: the reason for each file that was not read.
    """
    provenance = job.model.provenance
    yield from provenance.get("loaded", ())  # what became of a published file's tensors
    yield from input_notes(job.images, job.model.preprocess)
    if seen := _pretrained_on(job, tested):
        captions = "tokenizer" in provenance
        use = "their captions were read then" if captions else "labels were not used then"
        use = "their labels were learned then" if "labels" in provenance else use
        yield f"the encoder was pretrained on {seen}; {use}"
    if skipped:
        path, reason = next(iter(skipped.items()))
        first = "" if len(skipped) == 1 else "the first: "
        yield f"left out, not read as an image: {count(len(skipped), 'file')} ({first}{path}: {reason})"


def _pretrained_on(job: Job, tested: Int[np.ndarray, "m"]) -> str:
    """Which of these images the encoder has seen, in words; "" if none.

    By the images' content where the run has kept it, else by the name of the source.
    """
    images, provenance = job.images, job.model.provenance
    if job.trained_on is not None and isinstance(images, IndexedImages):
        rng, others = np.random.default_rng(job.seed), np.setdiff1d(np.arange(len(images)), tested)
        tests, rest = (images.subset(rng.permutation(rows)[:ALL]) for rows in (tested, others))
        if seen := _share_seen(job.trained_on, tests, "test image"):
            return f"{seen}, by their content"
        seen = _share_seen(job.trained_on, rest, "image")
        return f"{seen} outside the test part, by their content, and on none inside it" if seen else ""
    fingerprint = provenance.get("fingerprint")
    same = fingerprint is not None and fingerprint == getattr(images, "fingerprint", None)
    if not same and provenance.get("images") != job.source:
        return ""
    parts = {"train": "its train part alone", "all": "all of its images, the test part's included"}
    return f"this source ({parts.get(str(provenance.get('part')), 'which part is not recorded')})"


def _share_seen(trained_on: TrainedOn, images: IndexedImages, thing: str) -> str:
    seen = trained_on.among(images)
    if not seen:
        return ""
    every = count(len(images), thing)
    if trained_on.share == 1:
        return f"all {every}" if seen == len(images) else f"{seen:,} of {every}"
    return f"about {min(1, seen / trained_on.share / len(images)):.0%} of {every}"
