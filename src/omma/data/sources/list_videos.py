"""From a listing of videos to one of their frames, with the columns `sequence` and `frame`."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pyarrow as pa

from omma.core.protocols import BadImage
from omma.core.words import count
from omma.data.sources.columns import texts
from omma.data.sources.list_sounds import restricted
from omma.data.sources.listing import Listing
from omma.data.sources.readers import Files
from omma.data.sources.tables import TRACK
from omma.data.sources.video import WHOLE, Videos, named

_THREADS = 4


def with_frames(listing: Listing) -> Listing:
    """The listing with each video's frames in its place; one without videos as it is.

    What is known of a video holds for each of its frames. Their `sequence` is the video's path and their
    `frame` the number, in place of what a table says in such columns. A path such as clip.mp4#00012 is one
    frame.
    """
    paths = listing.paths.to_pylist()
    rows = [named(path) for path in paths]
    if not any(rows) or not isinstance(listing.store, Files):
        return listing
    store = Videos(listing.store)
    files = list(dict.fromkeys(row[0] for row in rows if row))

    def frames(file: str) -> int | str:
        try:
            return store.frames(file)
        except BadImage as error:
            return str(error)

    with ThreadPoolExecutor(_THREADS) as pool:
        lengths = dict(zip(files, pool.map(frames, files), strict=True))
    bad, good, numbers = [], [], []
    for k, (path, row) in enumerate(zip(paths, rows, strict=True)):
        length = lengths[row[0]] if row else 0
        if isinstance(length, str):
            bad.append((path, length))
        elif row and row[1] is not None and row[1] >= length:
            bad.append((path, f"the video has no frame {row[1]}, but 0 to {length - 1}"))
        else:
            good.append(k)
            of_row = [WHOLE] if row is None else list(range(length)) if row[1] is None else [row[1]]
            numbers.append(np.array(of_row, np.int64))
    listing = restricted(listing, np.array(good, np.int64), bad)
    if not good:
        return listing
    owner = np.repeat(np.arange(len(good)), [len(each) for each in numbers])
    return _by_frame(listing, store, [rows[k] for k in good], owner, np.concatenate(numbers))


def _by_frame(
    listing: Listing,
    store: Videos,
    rows: list[tuple[str, int | None] | None],
    owner: np.ndarray,
    number: np.ndarray,
) -> Listing:
    """A listing with a row for each frame; rows: the video of each row of the old one, of which some own."""
    known = listing.annotations.take(owner)
    old = listing.paths.to_pylist()
    videos = [None if rows[k] is None else rows[k][0] for k in range(len(rows))]  # pyright: ignore
    pairs = list(zip([videos[k] for k in owner.tolist()], owner.tolist(), number.tolist(), strict=True))
    paths = [old[k] if video is None else f"{video}#{n:05d}" for video, k, n in pairs]
    table = known.columns
    is_frame = np.array([video is not None for video, *_ in pairs])
    columns = {} if table is None else {name: table[name] for name in table.column_names}
    columns |= _track(table, [video for video, *_ in pairs], number, is_frame)
    used = len({video for video in videos if video is not None})
    note = f"{count(int(is_frame.sum()), 'frame')} of {count(used, 'video')}, each an image"
    return replace(
        listing,
        store=store,
        paths=pa.array(paths, pa.large_string()),
        where=number[:, None],
        annotations=replace(known, notes=(*known.notes, note), columns=pa.table(columns)),
    )


def _track(
    table: pa.Table | None, videos: list[str | None], number: np.ndarray, is_frame: np.ndarray
) -> dict[str, pa.Array]:
    """Sequence and frame of each row; those of an image are the table's, else none and 0."""
    there = [() if table is None or name not in table.column_names else texts(table, name) for name in TRACK]
    sequence, frame = ([value.as_py() for value in column] or [None] * len(number) for column in there)
    sequences = [video or own for video, own in zip(videos, sequence, strict=True)]
    frames = [
        str(n) if video else own or "0"
        for video, own, n in zip(is_frame.tolist(), frame, number.tolist(), strict=True)
    ]
    return dict(zip(TRACK, (pa.array(sequences, pa.large_string()), pa.array(frames, pa.large_string()))))
