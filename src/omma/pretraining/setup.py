"""What is decided before a network is built: machine, images, weights to start from, sizes, run folder."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from omma import methods
from omma.core import device as devices
from omma.core import dist
from omma.core.protocols import Needs, Recipe
from omma.data.batches import gpu_jpeg
from omma.data.sources import groups as grouping
from omma.data.sources.indexed import IndexedImages
from omma.pretraining import data, init_weights, repeat, requirements, same_images
from omma.pretraining.choose import Choice, Facts, choose
from omma.pretraining.data import Data
from omma.pretraining.folder import RunFolder
from omma.pretraining.init_weights import Start
from omma.pretraining.request import Request, chosen
from omma.pretraining.same_images import Known
from omma.weights import Model


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """A choice whose batch is settled."""

    choice: Choice
    accumulate: int  # micro-batches of a step
    fitted: Mapping[str, int] | None  # batch and accumulate that a trial found when the run began
    smaller: Callable[[int], Choice] | None  # the choice for a smaller batch; None if the sizes are fixed
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A request with everything that was left open decided."""

    request: Request
    device: torch.device
    dtype: torch.dtype
    decode: gpu_jpeg.Decode | None  # JPEGs on the device; None: in worker processes
    data: Data
    images: IndexedImages  # to train on
    facts: Facts
    start: Start | None  # weights to start from
    teacher: Model | None  # trained model that the method learns from
    sizes: Sizes
    folder: RunFolder
    known: Known  # of the images, if the run has begun before

    @property
    def choice(self) -> Choice:
        """Method, model, recipe and sizes."""
        return self.sizes.choice

    @property
    def needs(self) -> Needs:
        """What the method requires."""
        return requirements.needs_of(self.choice.method, self.choice.recipe.config)


def decide(request: Request) -> Setup:
    """Open the images and decide what the request leaves open; raises ValueError for what cannot be done."""
    device, decode = _machine(request)
    requirements.adapter(request)  # is refused before images are read
    opened = data.open_source(request)
    teacher = init_weights.teacher(request)
    needs = requirements.of_request(request)
    frames = requirements.frames_of(request)

    def prepared(group: str | None) -> Data:
        supervision = request.supervision
        return data.prepare(opened, needs, request.seed, request.listen, supervision, frames, group)

    images = prepared(request.group)
    if _began_without_groups(request, images, _folder(request, images)):
        images = prepared(grouping.NONE)
    training = images.source.subset(images.training)
    facts, known, start = data.facts(training, device.type, images.source), Known(), None
    if (folder := _folder(request, images)) is not None:
        known = same_images.recall(folder, images.source, request.accept_changed_data)
        if request.init is not None:
            start = init_weights.find(request, folder)
    choice = choose(known.planned(facts), request, None if start is None else start.origin)
    if folder is None:
        model = choice.model.translate({ord("/"): "-", ord(":"): "-"})  # of timm:resnet18, too
        name = f"{images.stem}-{choice.method}-{model}"
        folder = same_images.default_folder(Path("runs") / name, images.source)
        known = same_images.recall(folder, images.source, request.accept_changed_data)
        if _began_without_groups(request, images, folder):
            images = prepared(grouping.NONE)
            training = images.source.subset(images.training)
            facts = data.facts(training, device.type, images.source)
        choice = choose(known.planned(facts), request, None)
    facts = known.planned(facts)
    sizes = _sizes(request, facts, start, choice, folder)
    return Setup(
        request=request,
        device=device,
        dtype=_precision(request, device, folder),
        decode=decode,
        data=images,
        images=training,
        facts=facts,
        start=start,
        teacher=teacher,
        sizes=dataclasses.replace(sizes, choice=_begun(request, sizes.choice, folder)),
        folder=folder,
        known=known,
    )


def _began_without_groups(request: Request, images: Data, folder: RunFolder | None) -> bool:
    """Does the folder hold a run whose hold-out knew no groups, and is none asked for now?"""
    if folder is None or images.groups is None or request.group is not None:
        return False
    return dist.broadcast(bool(folder.config()) and "group" not in folder.config())


def _machine(request: Request) -> tuple[torch.device, gpu_jpeg.Decode | None]:
    """The device, and what decodes JPEGs on it; ValueError for options that it does not allow."""
    device = devices.pick_device(request.device)
    decode = gpu_jpeg.decoder(device) if request.decode == "gpu" else None
    if request.shard == "fsdp" and not dist.is_distributed():
        raise ValueError(
            "shard fsdp shards the network over processes, and this is one: start several (torchrun "
            "--nproc-per-node N -m omma pretrain ..., docs/scale.md), or leave --shard out"
        )
    return device, decode


def _folder(request: Request, images: Data) -> RunFolder | None:
    """The folder that the user names, or that of a run from weights; None if the method names it."""
    if request.out is not None:
        return RunFolder(Path(request.out))
    default = init_weights.default_out(request, images.stem)
    return None if default is None else same_images.default_folder(default, images.source)


def _precision(request: Request, device: torch.device, folder: RunFolder) -> torch.dtype:
    """The precision; that of "auto" is a measurement, whose result holds for the whole run."""
    name = request.precision
    if name == "auto":
        name = folder.config().get("precision", name)
    return dist.broadcast(devices.pick_precision(name, device))


def _begun(request: Request, choice: Choice, folder: RunFolder) -> Choice:
    """With the recipe that the run began with, if it has begun: this version's may be another."""
    config = dist.broadcast(folder.config())
    if not config or not repeat.same_recipe(request, choice, config):
        return choice
    try:
        recipe = Recipe.restored(config["settings"], methods.get(choice.method).Config)
        options = requirements.configured(choice.method, recipe.config, request.options or {})
    except (TypeError, ValueError, KeyError):  # of a later version; `RunFolder.check` names what differs
        return choice
    asked = {"config": options, "lr": chosen(request.lr), "batch": chosen(request.batch_size)}
    recipe = dataclasses.replace(
        recipe, **{name: value for name, value in asked.items() if value is not None}
    )
    return dataclasses.replace(choice, recipe=recipe)


def _sizes(request: Request, facts: Facts, start: Start | None, choice: Choice, folder: RunFolder) -> Sizes:
    """The batch as it fitted into memory if the run has begun before, else as it was chosen."""

    def smaller(batch: int) -> Choice:
        origin = None if start is None else start.origin
        return choose(facts, dataclasses.replace(request, batch_size=batch), origin)

    accumulate, notes = chosen(request.accumulate) or 1, tuple[str, ...]()
    is_open = chosen(request.batch_size) is None and chosen(request.accumulate) is None
    fitted = dist.broadcast(folder.config().get("fitted")) if is_open else None
    if fitted is not None:
        choice, accumulate = smaller(fitted["batch"]), fitted["accumulate"]
        notes = (
            f"batch {fitted['batch']} in {accumulate} micro-batches, as memory allowed when the run began",
        )
    if choice.recipe.batch % (accumulate * dist.world_size()):
        raise ValueError(
            f"batch size {choice.recipe.batch} cannot be divided into {accumulate} micro-batches on "
            f"{dist.world_size()} processes: change --batch-size or --accumulate"
        )
    return Sizes(
        choice=choice,
        accumulate=accumulate,
        fitted=fitted,
        smaller=smaller if is_open and fitted is None else None,
        notes=notes,
    )
