"""From a pool to the list of chosen images: what is left out first, then the strategy, then the table."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from omma.core.words import count
from omma.curation.parts import Parts
from omma.curation.pool import Extractor, Pool, effective_classes, others
from omma.curation.repeats import calibrated, without_repeats
from omma.curation.retrieval import similar
from omma.curation.strategies import LABELLING, Chosen, Seed, Task, choose
from omma.data.sources.collection import named
from omma.features import records
from omma.features.vectors import ChosenVectors, Vectors

EXCLUDED = 0.45  # similarity to an image of an evaluation set from which one is left out
SAME = 0.999  # similarity of an image to itself, embedded twice in any precision


@dataclass(frozen=True)
class Options:
    """What is asked for; similarities are cosines."""

    size: int
    strategy: str = "balanced"
    levels: Sequence[int] | None = None
    similarity: float | None = None  # above it images are copies; None: calibrated; 1: none are
    exclude_similarity: float = EXCLUDED
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size={self.size}: must be at least 1")
        for name in ("similarity", "exclude_similarity"):
            value = getattr(self, name)
            if value is not None and not -1 <= value <= 1:
                raise ValueError(f"{name}={value}: must be a cosine, from -1 to 1")


@dataclass(frozen=True)
class Selection:
    """Chosen images: rows of the pool, in the order of the list."""

    rows: Int[np.ndarray, "m"]
    chosen: Chosen
    before: tuple[float, int] | None  # effective number of classes of the pool, and how many; None: no labels
    after: tuple[float, int] | None
    notes: tuple[str, ...] = ()


def select(
    pool: Pool,
    vectors: Vectors,
    options: Options,
    extractor: Extractor,
    parts: Parts,
    *,
    seed_set: Any = None,
    exclude: Any = None,
    labelled: Any = None,
    probabilities: Callable[[Int[np.ndarray, "n"]], Float[np.ndarray, "n k"]] | None = None,
) -> Selection:
    """Choose from a pool, whose unit vectors are `vectors`.

    In turn: near-copies go, but one of each group; images too near to `exclude`; those that are labelled;
    then the strategy chooses, or retrieval for the seed set. These three are sources as the pool's, or None.
    probabilities: of a classifier for rows of the pool, for strategies that need one. Raises ValueError
    where nothing is left.
    """
    rng = np.random.default_rng(options.seed)
    rows, notes = _without_copies(vectors, options, extractor, parts)
    taken = np.zeros((0, vectors.dim), np.float32)
    if exclude is not None:
        barred, _ = others(exclude, vectors, extractor)
        keep = ~similar(ChosenVectors(vectors, rows), barred, options.exclude_similarity)
        left_out, name = count(len(rows) - int(keep.sum()), "image"), named(exclude)
        notes.append(f"{left_out} left out: similarity to {name} above {options.exclude_similarity:g}")
        rows = rows[keep]
    if labelled is not None:
        taken, _ = others(labelled, vectors, extractor)
        rows = rows[~similar(ChosenVectors(vectors, rows), taken, SAME)] if len(rows) else rows
        notes.append(
            f"{count(len(taken), 'image')} of {named(labelled)} labelled already: the list complements them"
        )
    own = pool.labelled[rows]
    if options.strategy in LABELLING and own.any() and not own.all():
        taken = np.concatenate([taken, vectors.take(rows[own])])
        notes.append(f"{count(int(own.sum()), 'image')} labelled already: the list complements them")
        rows = rows[~own]
    if not len(rows):
        raise ValueError(f"{pool.source}: no image is left to choose from; {'; '.join(notes)}")
    facts = hashlib.sha256(rows.tobytes()).hexdigest(), list(options.levels or ()), options.seed
    task = Task(
        vectors=ChosenVectors(vectors, rows),
        size=options.size,
        labelled=taken,
        rng=rng,
        seed=options.seed,
        levels=options.levels,
        device=extractor.device,
        parts=parts.within("levels", *facts),
        probabilities=None if probabilities is None else probabilities(rows),
        queries=None if seed_set is None else Seed(*others(seed_set, vectors, extractor)),
        progress=extractor.progress,
    )
    chosen = choose(options.strategy, task)
    final = rows[chosen.rows]
    before, after = effective_classes(pool), effective_classes(pool, final)
    return Selection(final, chosen, before, after, (*notes, *chosen.notes))


def _without_copies(
    vectors: Vectors, options: Options, extractor: Extractor, parts: Parts
) -> tuple[np.ndarray, list[str]]:
    """The rows that stay, and a note."""
    if (similarity := options.similarity) is None:
        similarity = calibrated(vectors, np.random.default_rng(options.seed))
    if similarity >= 1:
        return np.arange(len(vectors)), []
    kept = without_repeats(
        vectors,
        similarity,
        seed=options.seed,
        device=extractor.device,
        tell=partial(extractor.progress, "looking for near-copies"),
        parts=parts.within("copies", similarity, options.seed),
    )
    gone = len(vectors) - len(kept.rows)
    note = f"{count(gone, 'near-copy', 'near-copies')} left out: similarity above {similarity:.3f}"
    if gone:
        note += f", of the largest group one of {kept.largest:,}"
    if not kept.exact:
        note += "; sought within clusters, so some may be left"
    return kept.rows, [note]


# ---------------------------------------------------------------- the list
def write(out: Path, pool: Pool, selection: Selection) -> None:
    """The list as a table that `omma pretrain` and `open_images` take: .csv, .parquet or .jsonl.

    Columns: path, label (`labels`, lists, of images with several) if the pool has them, row (of the pool,
    from 0), cluster_1 (the finest level), cluster_2, ..., weight (images of the pool that it stands for; null
    where that does not apply) and why.
    """
    rows, chosen = selection.rows, selection.chosen
    columns: dict[str, Any] = {"path": pa.array(pool.files(rows), pa.string())}
    if pool.labels is not None:
        several = pa.types.is_nested(pool.labels.type)
        own = pool.labels.take(pa.array(rows))
        columns["labels" if several else "label"] = own.cast(
            pa.list_(pa.string()) if several else pa.string()
        )
    columns["row"] = pa.array(rows, pa.int64())
    if chosen.clusters is not None:
        for level, own in enumerate(chosen.clusters.T, start=1):
            columns[f"cluster_{level}"] = pa.array(own, pa.int32())
    columns["weight"] = pa.array(np.round(chosen.weight, 4), pa.float64(), from_pandas=True)
    columns["why"] = pa.array(chosen.why, pa.string())
    table = pa.table(columns)
    with records.writer(out, table.schema) as append:
        append(table)


def folders(pool: Pool, selection: Selection) -> tuple[list[int], list[str]]:
    """Rows of the chosen images, and for each the folder of a copy: its first label, else "images"."""
    rows = selection.rows.tolist()
    if pool.labels is None:
        return rows, ["images"] * len(rows)
    labels = pool.labels.take(pa.array(rows)).to_pylist()
    first = [next(iter(label), None) if isinstance(label, list) else label for label in labels]
    return rows, [str(label) if label else "images" for label in first]


def notes_on(pool: Pool, selection: Selection) -> list[str]:
    """How labels are balanced before and after, and whether the list can be opened."""
    notes = []
    if selection.before is not None and selection.after is not None:
        (before, k), (after, own) = selection.before, selection.after
        notes.append(
            f"effective number of classes (exp of the labels' entropy): {before:.2f} of {k} in the pool, "
            f"{after:.2f} of {own} in the list"
        )
    if pool.folder is None:
        notes.append(
            f"the images of {pool.source} are no files that a list can name: its column row numbers them; "
            "--copy DIR writes those of an archive as files"
        )
    return notes
