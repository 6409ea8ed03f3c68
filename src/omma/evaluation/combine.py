"""One evaluation from the judgements by labels, captions and neighbours."""

from collections.abc import Sequence

import numpy as np

from omma.evaluation import notes
from omma.evaluation.job import Job, Judgement
from omma.evaluation.verdict import Evaluation


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
