"""A run ready to train: its parts, and the batches that it takes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from omma import methods
from omma.core import dist, launcher
from omma.core.protocols import Batch, Crop, Method, Preprocess
from omma.data.batches import augment, gpu_jpeg, loader
from omma.data.batches.decoded_cache import Cache
from omma.data.sources.captions import Captions
from omma.data.sources.indexed import IndexedImages
from omma.pretraining.choose import Choice
from omma.pretraining.events import Event, Note
from omma.pretraining.folder import RunFolder
from omma.pretraining.related import Related
from omma.pretraining.tracker import Tracked
from omma.pretraining.watch import Watch
from omma.train.budget import Timekeeper
from omma.train.loop import Position, moved
from omma.train.profile import OFF, Phase, Stopwatch


@dataclass
class Run:
    """Everything that training needs."""

    described: str  # the source, in a line
    images: IndexedImages  # to train on
    cache: Cache | None  # what they are read from; None: the source
    shorter_side: int  # of the source's images, median, pixels
    method: Method
    crops: tuple[Crop, ...]
    captions: Captions | None  # tokens of a caption of each image
    related: Related  # what belongs together: frames of a sample, numbers beside each image
    preprocess: Preprocess
    optimizer: torch.optim.Optimizer
    position: Position
    choice: Choice
    folder: RunFolder
    watcher: Watch
    clock: Timekeeper
    device: torch.device
    dtype: torch.dtype
    seed: int
    accumulate: int
    sized: Callable[[int], Choice] | None  # the choice for a smaller batch; None if the sizes are fixed
    compile: str  # "on" | "off" | "auto": compile the blocks; auto: if that pays
    workers: int | None
    decode: gpu_jpeg.Decode | None  # JPEGs on the device; None: in the workers
    listen: Callable[[Event], None]
    balance: np.ndarray | None  # labels whose classes are drawn equally often
    groups: np.ndarray | None  # of the images: what belongs together
    part: str  # "train" | "all": which images of the source are trained on
    notes: list[str]
    skipped: list[tuple[str, str]]
    primary: bool
    watch: Stopwatch = OFF
    track: str = "none"  # a tracker that gets the metrics, too

    def tracked(self) -> Tracked | None:
        """The tracker of the primary process, begun; None if there is none."""
        if not self.primary or self.track == "none":
            return None
        folder = self.folder
        return Tracked(self.track, folder.path, folder.config(), lambda text: self.listen(Note(text)))


def stream(run: Run) -> loader.Stream:
    """Crops from the run's position on, without end."""
    workers, here = run.workers, launcher.ranks()
    if workers is None and here.local_world_size > 1:  # of this machine's cores
        workers = loader.auto_workers(here.local_world_size)
    return loader.stream(
        run.images,
        run.crops,
        run.choice.recipe.batch // run.accumulate,
        run.seed,
        start_step=run.position.step * run.accumulate,
        workers=workers,
        rank=dist.rank(),
        world=dist.world_size(),
        device=run.device,
        decode=run.decode,
        full_scale=run.preprocess.full_scale,
        balance=run.balance,
        period=methods.get(run.choice.method).needs(run.choice.recipe.config).period,
        frames=run.related.sampler,
    )


def batches(run: Run, stream: loader.Stream) -> Iterator[Batch]:
    """Views of the stream's crops, labels, captions and fields, on the device.

    Of several frames, the first one's label and caption are the sample's.
    """
    labels, label_sets = run.images.labels, run.images.label_sets
    for crops, key, rows, _ in stream:
        run.watch.to(Phase.VIEWS)
        read = rows if rows.ndim == 1 else rows[:, 0]
        label = None if labels is None else torch.from_numpy(labels[read])
        sets = None if label_sets is None else torch.from_numpy(label_sets[read]).float()
        text = None if run.captions is None else run.captions(key, read)
        views = augment.augment(crops, run.crops, key, run.preprocess)
        fields = {name: torch.from_numpy(values[rows]) for name, values in run.related.fields.items()}
        yield moved(Batch(views, key, label, text, sets, fields), run.device)
        if stream.in_memory:  # the next crops are cut when they are asked for
            run.watch.to(Phase.VIEWS)
