"""`omma index`: the vectors of images on disk, ready to be searched, and kept up to date."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from omma import weights
from omma.core import device as devices
from omma.core import outputs
from omma.core.checks import one_of
from omma.core.explain import translated
from omma.core.notebook import Displayed
from omma.core.protocols import ImageSource
from omma.data.sources import collection
from omma.data.sources.layout import LabelDepth
from omma.data.sources.values import input_notes
from omma.retrieval import build, lance, servers
from omma.retrieval.manifest import IndexModel
from omma.retrieval.recall import Recall
from omma.retrieval.store import Index
from omma.weights import Model

ENGINES = ("exact", "lancedb")
CHANGES = ("kept", "added", "changed", "moved", "removed")


@dataclass(frozen=True)
class Indexed(Displayed):
    """What was written, and what became of the images."""

    path: Path
    rows: int  # images in the index
    dim: int
    kept: int = 0  # images as they were before
    added: int = 0
    changed: int = 0  # of another content
    moved: int = 0  # of another path, with a content that was known
    removed: int = 0
    recall: Recall | None = None  # of the approximate engine, where one was built
    sent: Recall | None = None  # of the server that the index was copied to
    bad: tuple[tuple[str, str], ...] = field(default=(), repr=False)  # (path, reason) of images left out
    notes: tuple[str, ...] = ()


@translated()
def index(
    model: str | Path | Model | None = None,
    images: ImageSource | None = None,
    out: str | Path = "photos.index",
    *,
    vectors: str | Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    architecture: str | None = None,
    allow_partial: bool = False,
    label_depth: LabelDepth | None = None,
    engine: str = "exact",
    to: str | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Indexed:
    """Write the vectors of all readable images to the index `out`, or bring it up to date with them.

    An index that is there keeps the vectors of images whose content it knows, under whatever path; those
    that are gone leave it. It opens with all that was committed if this process is killed, and the same
    call goes on from there.
    vectors: instead of images, a .parquet as `omma embed` writes it; `model` then is optional.
    engine: "lancedb" builds an approximate one, too, and measures its recall (retrieval/lance.py). to: the
    address of a server to copy the index to (retrieval/servers.py). seed: of the queries for both recalls.
    progress: images in the index on the disk, and in all. Others: as for embed. Raises ValueError for an
    index of another model, while another process writes it, and where no image can be read.
    """
    out = Path(out)
    one_of("engine", engine, ENGINES)
    outputs.check_folder(out)
    if to is not None:
        servers.check(to)
    if (images is None) == (vectors is None):
        raise ValueError("give images to index, or --vectors table.parquet, but not both")
    loaded = identity = None
    if model is not None:
        loaded, name = weights.named(model, architecture=architecture, allow_partial=allow_partial)
        identity = IndexModel(_address(name), loaded.digest, architecture, allow_partial)
    notes: tuple[str, ...] = ()
    if vectors is not None:
        built = build.fill(out, vectors, identity, progress)
    elif loaded is None or identity is None or images is None:
        raise ValueError("give the model that embeds the images: omma index MODEL IMAGES --out photos.index")
    else:
        where = devices.pick_device(device)
        opened = collection.opened(images, label_depth)
        picked = devices.pick_precision(precision, where)
        built = build.update(out, loaded, identity, opened, where, picked, progress)
        notes = (*loaded.provenance.get("loaded", ()), *input_notes(opened, loaded.preprocess))
    changes = {name: getattr(built, name) for name in CHANGES}
    return Indexed(
        path=out,
        rows=built.rows,
        dim=built.dim,
        recall=lance.ensure(out, seed) if engine == "lancedb" else None,
        sent=None if to is None else servers.send(Index.open(out), to),
        bad=built.bad,
        notes=(*notes, *built.notes),
        **changes,
    )


def _address(name: str) -> str:
    """The model's name from any working directory."""
    place = Path(name).expanduser()
    return str(place.absolute()) if place.exists() else name
