"""One evaluation from the judgements by labels, captions, neighbours or numbers."""

from collections.abc import Sequence

import numpy as np

from omma.data.sources import label_sets
from omma.evaluation import notes
from omma.evaluation.job import Job, Judgement
from omma.evaluation.judge import by_labels
from omma.evaluation.judge_captions import by_captions
from omma.evaluation.judge_images import by_images
from omma.evaluation.judge_sets import by_label_sets
from omma.evaluation.judge_targets import by_targets
from omma.evaluation.verdict import Evaluation


def judgements(job: Job, protocols: Sequence[str]) -> list[Judgement]:
    """The results of the protocols, with those of labels together."""
    if job.target is not None:
        return [by_targets(job, job.target, protocols)]
    made: list[Judgement] = []
    if probed := [p for p in protocols if p not in ("retrieval", "image-retrieval")]:
        judge = by_labels if label_sets.of(job.images) is None else by_label_sets
        made.append(judge(job, probed))
    if "retrieval" in protocols:
        made.append(by_captions(job))
    if "image-retrieval" in protocols:
        made.append(by_images(job))
    return made


def combined(job: Job, name: str, judgements: Sequence[Judgement]) -> Evaluation:
    """All results, with the notes on how images were read. name: of the model."""
    skipped = dict(
        (*getattr(job.images, "skipped", ()), *(bad for judged in judgements for bad in judged.bad))
    )
    tested = np.unique(np.concatenate([judged.tested for judged in judgements]))
    trees = [note for tree in job.trees.values() for note in tree.notes]
    return Evaluation(
        model=name,
        digest=job.model.digest,
        data=job.source,
        results=tuple(score for judged in judgements for score in judged.scores),
        comparisons=tuple(comparison for judged in judgements for comparison in judged.comparisons),
        notes=tuple(
            dict.fromkeys(
                (
                    *notes.notes(job, tested, skipped),
                    *(note for judged in judgements for note in judged.notes),
                    *trees,
                )
            )
        ),
        skipped=tuple((str(path), str(reason)) for path, reason in skipped.items()),
        details=tuple(each for judged in judgements for each in judged.details),
        leakage=next((judged.leakage for judged in judgements if judged.leakage is not None), None),
    )
