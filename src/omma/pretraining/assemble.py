"""A run assembled from what was decided: network, optimizer, pixels, and what watches them."""

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from omma import backbones, methods
from omma.backbones import adapters
from omma.core import device as devices
from omma.core import dist
from omma.core.protocols import (
    NO_EXTRAS,
    Backbone,
    Context,
    Crop,
    Method,
    ParamGroup,
    Preprocess,
    Tokenizer,
    Tracks,
)
from omma.data.batches import augment, gpu_jpeg, loader, sound_views
from omma.data.batches import preprocess as preprocessing
from omma.data.batches.decoded_cache import Cache
from omma.data.batches.frames import plan
from omma.data.sources import captions
from omma.data.sources.captions import Captions
from omma.data.sources.indexed import IndexedImages
from omma.data.sources.values import scaling_notes
from omma.methods.shared.classifies import Classifies
from omma.pretraining import expectation, few_labels, init_weights, placement, related, repeat, requirements
from omma.pretraining.hold_out import HoldOut
from omma.pretraining.monitor import Monitor
from omma.pretraining.request import Request, chosen
from omma.pretraining.run import Run
from omma.pretraining.setup import Setup
from omma.pretraining.watch import Health, Watch
from omma.train import class_weights, ddp, fine_tune_groups, fsdp
from omma.train.budget import Timekeeper
from omma.train.loop import Position
from omma.train.optimizer import make_optimizer
from omma.train.profile import OFF, Profiler


def assemble(setup: Setup, timekeeper: Timekeeper) -> Run:
    """Everything that training needs, with the configuration that the run folder keeps."""
    request, choice = setup.request, setup.choice
    file, config = methods.get(setup.choice.method), setup.choice.recipe.config
    frames = file.frames(config)
    together = related.read(setup.images, frames, setup.needs.fields)
    network = _network(setup, together.tracks)
    method, compile_option, placed_notes = _place(setup, network.method)
    groups, start_notes = _groups(setup, method)
    watcher = _watcher(setup, method, network.preprocess)
    crops = sound_views.plan(setup.images, plan(file.views(config, choice.image_size), frames))
    pixels = _pixels(setup, crops)
    images, data = setup.images, setup.data
    if pixels.cache is not None:
        images = pixels.cache.images.subset(np.searchsorted(data.rows, data.training))
    primary = dist.rank() == 0
    return Run(
        described=data.source.describe(),
        images=images,
        cache=pixels.cache,
        shorter_side=setup.facts.shorter_side,
        method=method,
        captions=network.captions,
        related=together,
        crops=crops,
        preprocess=network.preprocess,
        optimizer=make_optimizer(method, choice.recipe, groups, setup.dtype),
        position=Position.of(choice.recipe, len(images)),
        choice=choice,
        folder=setup.folder,
        watcher=watcher,
        clock=timekeeper,
        device=setup.device,
        dtype=setup.dtype,
        seed=request.seed,
        accumulate=setup.sizes.accumulate,
        sized=setup.sizes.smaller,
        compile=compile_option,
        workers=chosen(request.workers),
        decode=pixels.decode,
        listen=request.listen,
        balance=few_labels.labels_of(images, np.arange(len(images))) if setup.needs.balanced else None,
        groups=None if data.groups is None else data.groups.codes[data.training],
        part=data.part,
        notes=[
            *expectation.published(setup),
            *setup.known.notes,
            *data.notes,
            *data.held_out_notes,
            *setup.sizes.notes,
            *network.notes,
            *placed_notes,
            *start_notes,
            *watcher.notes(),
            *pixels.notes,
            *augment.speed_notes(crops, images.channels, setup.device),
        ],
        skipped=list(data.source.skipped),
        primary=primary,
        watch=Profiler(method, setup.device, setup.dtype) if request.profile and primary else OFF,
        track=request.track,
    )


# ---------------------------------------------------------------- the network
@dataclass(frozen=True, kw_only=True)
class Network:
    """A method around its encoder, and what its images and texts pass before."""

    method: Method
    preprocess: Preprocess
    captions: Captions | None
    notes: tuple[str, ...]


def _network(setup: Setup, tracks: Tracks | None) -> Network:
    """Encoder and method on the CPU, filled with the weights that the run starts from."""
    request, choice, images, start = setup.request, setup.choice, setup.images, setup.start
    notes = list[str]()
    if setup.known.preprocess is None:
        preprocess = preprocessing.measure(images, choice.image_size, seed=request.seed)
    else:  # measured when the run began, on images that may have changed
        preprocess = preprocessing.from_dict(setup.known.preprocess)
    if start is not None and setup.known.preprocess is None:
        own = preprocessing.from_dict(start.origin.preprocess)
        preprocess, note = init_weights.prepared(preprocess, own)
        notes.append(note)
    notes += preprocessing.describe_range(preprocess)
    notes += [*scaling_notes(images, preprocess), *sound_views.notes(images)]
    torch.manual_seed(request.seed)
    encoder = _encoder(setup)
    if start is not None and start.model is not None:  # before the method copies its encoder
        notes += init_weights.fill(encoder, start.model, request.allow_partial)
    if (adapter := requirements.adapter(request)) is not None:
        adapters.insert(encoder, *adapter)
        requirements.suits(choice.method, setup.needs, encoder, choice.image_size)
    drawn, tokenizer = _captions(setup)
    if drawn is not None and tokenizer is not None:
        notes.append(f"captions are read with {tokenizer.vocabulary:,} tokens ({tokenizer.origin})")
        notes += drawn.notes()
    context = Context(
        image_size=choice.image_size,
        images=len(images),
        classes=images.classes,
        several=images.label_sets is not None,
        class_weights=_class_weights(images) if setup.needs.labels else None,
        start=NO_EXTRAS if start is None or start.model is None else start.model.extras,
        preprocess=preprocess,
        model=setup.teacher,
        tokenizer=tokenizer,
        tracks=tracks,
    )
    method = methods.get(choice.method).Method(encoder, choice.recipe.config, context)
    if start is None and not any(p.requires_grad for p in method.encoder.parameters()):
        raise ValueError(
            f"{choice.method} leaves its encoder as it is with these options, and it has not learned yet: "
            "give weights to start from (--init)"
        )
    return Network(method=method, preprocess=preprocess, captions=drawn, notes=tuple(notes))


def _encoder(setup: Setup) -> Backbone:
    choice = setup.choice
    encoder = backbones.build(
        name=choice.model,
        image_size=choice.image_size,
        channels=setup.images.channels,
        **choice.encoder_options(),
    )
    requirements.suits(choice.method, setup.needs, encoder, choice.image_size)
    if setup.request.recompute and not encoder.repeated():
        raise ValueError(f"--recompute works block by block, and {choice.model} has none: leave it out")
    encoder.recompute = setup.request.recompute
    return encoder


def _class_weights(images: IndexedImages) -> tuple[float, ...]:
    """Of each class in a loss that makes up for classes of different sizes."""
    if images.label_sets is not None:
        return tuple(class_weights.positive_weights(images.label_sets).tolist())
    assert images.labels is not None
    return tuple(class_weights.class_weights(images.labels, len(images.classes)).tolist())


def _captions(setup: Setup) -> tuple[Captions | None, Tokenizer | None]:
    """What draws a caption for each image, and its tokenizer, if the method learns from texts."""
    if setup.images.text is None or not setup.needs.text:
        return None, None
    usable = captions.fit(setup.images.text)[1]
    make_tokenizer = methods.get(setup.choice.method).tokenizer
    assert make_tokenizer is not None, "a method that needs texts offers a tokenizer"
    tokenizer = make_tokenizer(setup.choice.recipe.config, setup.teacher, captions.sample(usable))
    return Captions(usable, tokenizer), tokenizer


def _place(setup: Setup, method: Method) -> tuple[Method, str, list[str]]:
    """The method on its device, its blocks sharded if they should be; whether they are compiled; notes."""
    request = setup.request
    sharded, notes = (False, []) if setup.needs.holds_out else _sharded(setup, method)
    compile_option = placement.compile_blocks(
        request.compile,
        device=setup.device.type,
        blocks=bool(method.encoder.repeated()),
        profiled=request.profile,
        sharded=sharded,
        # what a trial decided holds for the whole run
        compiled_before=request.compile == "auto" and bool(setup.folder.config().get("compile")),
    )
    if sharded:
        fsdp.shard(method, setup.device, setup.dtype)
    method = method.to(setup.device)
    ddp.broadcast_state(method)
    return method, compile_option, notes


def _sharded(setup: Setup, method: Method) -> tuple[bool, list[str]]:
    trained = sum(p.numel() for group in method.groups() for p in group.params)
    others = sum(p.numel() for p in method.parameters()) - trained
    device = setup.device
    memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    return dist.broadcast(
        placement.shard_blocks(
            setup.request.shard,
            processes=dist.world_size(),
            state=placement.state_bytes(trained, others, half_copy=setup.dtype != torch.float32),
            memory=memory,
            blocks=bool(method.encoder.repeated()),
        )
    )


def _groups(setup: Setup, method: Method) -> tuple[list[ParamGroup] | None, list[str]]:
    """Parameter groups that treat the weights a run starts from with care; None without such weights."""
    if setup.start is None:
        return None, []
    origin = setup.start.origin
    groups = fine_tune_groups.groups(method, origin.head_warmup, origin.encoder_lr_scale)
    return groups, [init_weights.describe(groups, origin, method.encoder)]


def _watcher(setup: Setup, method: Method, preprocess: Preprocess) -> Watch:
    """What suits the method: readings of health, or of a classifier's score on held-out images."""
    sample, held_out = setup.data.source.subset(setup.data.sample), setup.data.held_out
    groups = None if setup.data.groups is None else setup.data.groups.codes[setup.data.sample]
    if setup.needs.holds_out:
        assert isinstance(method, Classifies), "as Needs.holds_out says"
        own, knows = setup.needs.patience, setup.needs.fits_head or method.begun
        patience = setup.request.supervision.patience if own is None else own
        return HoldOut(sample, preprocess, held_out, patience, setup.device, knows, groups)
    monitor = Monitor(
        sample,
        setup.images,
        preprocess,
        setup.request.seed,
        held_out,
        blind=not setup.needs.labels,
        continued=setup.start is not None,
        groups=groups,
        signals=method.health_signals(),
    )
    return Health(monitor, setup.dtype)


# ---------------------------------------------------------------- pixels
class Pixels(NamedTuple):
    """Where the pixels of images are read."""

    cache: Cache | None
    decode: gpu_jpeg.Decode | None
    notes: list[str]


def _pixels(setup: Setup, crops: tuple[Crop, ...]) -> Pixels:
    """A cache of decoded images, or a decoder on the GPU, if the user wants one and it is of use."""
    images, decode = setup.images, setup.decode
    in_memory = loader.fits_in_memory(images)
    if setup.request.cache and in_memory:
        return Pixels(None, None, ["no cache is needed: the images fit into memory, decoded"])
    if setup.request.cache:
        return Pixels(Cache(setup.data.source.subset(setup.data.rows), augment.at_least(crops)), None, [])
    if decode is not None and in_memory:
        return Pixels(None, None, ["the GPU has nothing to decode: the images fit into memory, decoded"])
    if decode is not None and not gpu_jpeg.any_plain(images):
        raise ValueError(
            f"{setup.data.source.source}: no JPEG is among {gpu_jpeg.SAMPLE} of its images: leave "
            "--decode gpu out"
        )
    return Pixels(None, decode, [])


# ---------------------------------------------------------------- the configuration
def configuration(setup: Setup, run: Run) -> dict[str, Any]:
    """config.json: what must be the same when the run is resumed."""
    request, choice, tokenizer = setup.request, setup.choice, None if run.captions is None else run.captions
    config = {
        "images": setup.data.source.source,
        "fingerprint": setup.data.source.fingerprint,
        "method": choice.method,
        "model": choice.model,
        "image_size": choice.image_size,
        "recipe": choice.recipe_name,
        "settings": choice.recipe.settings(),
        "end": request.end,
        "seed": request.seed,
        "precision": devices.precision_name(setup.dtype),
        "accumulate": setup.sizes.accumulate,
        "options": repeat.asked(request),
    }
    extra = {
        "held": repeat.held(request.images),
        "compile": True if run.compile == "on" else None,
        "fitted": setup.sizes.fitted,
        "cache": None if run.cache is None else run.cache.side,
        "decode": None if run.decode is None else "gpu",
        "labels": "learned" if setup.needs.labels else None,
        "init": None if setup.start is None else dataclasses.asdict(setup.start.origin),
        "learns_from": None if setup.teacher is None else setup.teacher.digest,
        "adapt": _adapter(request),
        "columns": _columns(setup, run),
        "group": None if setup.data.groups is None else setup.data.groups.name,
        "supervision": dataclasses.asdict(request.supervision) if setup.needs.holds_out else None,
        "tokenizer": None if tokenizer is None else _digest(tokenizer.tokenizer.merges),
    }
    return config | {name: value for name, value in extra.items() if value is not None}


def _columns(setup: Setup, run: Run) -> str | None:
    """What was read of a table's columns; as the run began with, where changed data are accepted."""
    before = setup.folder.config().get("columns") if setup.request.accept_changed_data else None
    return before or run.related.digest


def _adapter(request: Request) -> dict[str, Any] | None:
    adapter = requirements.adapter(request)
    return None if adapter is None else {"kind": adapter[0], **adapter[1]}


def _digest(merges: np.ndarray) -> str:
    return hashlib.sha256(merges.tobytes()).hexdigest()
