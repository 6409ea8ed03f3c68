"""`omma pretrain`: images without labels in, an encoder out."""

import contextlib
import dataclasses
import hashlib
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from omma import backbones, methods
from omma.core import device as machine
from omma.core import dist, launcher
from omma.core.checks import one_of
from omma.core.protocols import BadImage, Context, Method
from omma.data.batches import augment, gpu_jpeg, loader
from omma.data.batches import preprocess as preprocessing
from omma.data.batches.decoded_cache import Cache
from omma.data.sources import captions, collection
from omma.data.sources.captions import Captions
from omma.data.sources.collection import IndexedImages
from omma.data.sources.labels import Known
from omma.pretraining import choose, init_weights, monitor, retention, trainer
from omma.pretraining.events import Event, Note, Result
from omma.pretraining.folder import RunFolder
from omma.pretraining.run import Run
from omma.reporting import run_report
from omma.train import checkpoint, ddp, fine_tune_groups, fsdp
from omma.train.budget import Timekeeper, seconds
from omma.train.loop import Position, make_optimizer
from omma.train.profile import OFF, Profiler

DEFAULT_BUDGET = "30m"
SHARDS = ("auto", "none", "fsdp")
COMPILED = ("auto", "on", "off")
DECODERS = ("cpu", "gpu")
RELEASE = 60.0  # seconds until the lock of a run that torchrun starts anew must be free


@dist.process_group()
def pretrain(
    images: str | Path | IndexedImages,
    *,
    method: str = "auto",
    model: str = "auto",
    init: str | Path | None = None,
    allow_partial: bool = False,
    head_warmup: float | None = None,
    encoder_lr_scale: float | None = None,
    out: str | Path | None = None,
    budget: str | float | None = None,
    epochs: float | None = None,
    steps: int | None = None,
    image_size: int | None = None,
    batch_size: int | None = None,
    accumulate: int | None = None,
    recompute: bool = False,
    compile: str = "auto",
    lr: float | None = None,
    recipe: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    shard: str = "auto",
    seed: int = 0,
    workers: int | None = None,
    cache: bool = False,
    decode: str = "cpu",
    checkpoint_every: float = 300.0,
    profile: bool = False,
    options: Mapping[str, Any] | None = None,
    model_options: Mapping[str, Any] | None = None,
    listen: Callable[[Event], None] = lambda event: None,
) -> Result:
    """Pretrain an encoder on images without labels.

    images: a folder, glob, archive, manifest or array file (docs/input.md), or an opened collection.
    method, model, recipe, device, precision: a name, or "auto" (docs/auto.md).
    init: weights to go on from (docs/continue.md): a run folder, a weights file, timm:NAME or hf:NAME;
        model and image size are then theirs unless said otherwise. allow_partial: also where many of its
        parameters find no place. head_warmup: share of the run in which the encoder is frozen (.1);
        encoder_lr_scale: its learning rate, as a share of the heads' (.1).
    out: the run folder; by default runs/ and a name of images, method and model. The same call again
        resumes the run that is there.
    budget, epochs, steps: one of them ends the run: a time ("10m"), passes over the images, or optimizer
        steps. None of them means 30 minutes.
    batch_size: images a step, over all processes; accumulate: parts that it is computed in; where neither is
        given, as many as memory is enough for (docs/auto.md). recompute: keep no activations within blocks,
        but compute them anew in the backward pass. compile: the blocks, by torch.compile (docs/scale.md).
    shard: "fsdp" spreads a network that is too large for one GPU over the processes that torchrun started,
        "none" gives each a copy (docs/scale.md).
    workers: processes that decode; None chooses. cache: keep decoded images on disk.
        decode: "gpu" leaves JPEGs to an NVIDIA GPU (docs/input.md).
    checkpoint_every: seconds.
    profile: time some of the first steps part by part, and tell (`train.profile`, docs/runs.md).
    options: the method's own, by the names of its Config. model_options: the backbone's own
        (`backbones.options(name)`). listen: is told what happens (`Event`).

    Raises ValueError, in one line, for anything the caller can mend.
    """
    clock = Timekeeper(None)
    ends = [
        name for name, end in (("budget", budget), ("epochs", epochs), ("steps", steps)) if end is not None
    ]
    if len(ends) > 1:
        raise ValueError(f"{' and '.join(ends)} are both given: choose one end for the run")
    for name, value in (
        ("epochs", epochs), ("steps", steps), ("image_size", image_size), ("batch_size", batch_size),
        ("accumulate", accumulate), ("lr", lr), ("checkpoint_every", checkpoint_every),
    ):  # fmt: skip
        if value is not None and not value > 0:
            raise ValueError(f"{name}={value}: must be above 0")
    clock.budget = seconds(budget or DEFAULT_BUDGET) if ends in ([], ["budget"]) else None
    place = machine.pick_device(device)
    one_of("shard", shard, SHARDS)
    one_of("compile", compile, COMPILED)
    one_of("decode", decode, DECODERS)
    if decode == "gpu" and cache:
        raise ValueError(
            "--cache keeps images decoded, and --decode gpu decodes them each time: give one of both"
        )
    decoder = gpu_jpeg.decoder(place) if decode == "gpu" else None
    if shard == "fsdp" and not dist.is_distributed():
        raise ValueError(
            "shard fsdp spreads the network over processes, and this is one: start several (torchrun "
            "--nproc-per-node N -m omma pretrain ..., docs/scale.md), or leave --shard out"
        )

    wishes = choose.Wishes(
        method=None if method == "auto" else method,
        model=None if model == "auto" else model,
        image_size=image_size,
        batch=batch_size,
        accumulate=accumulate or 1,
        lr=lr,
        recipe=None if recipe == "auto" else recipe,
        options=options or {},
        model_options=model_options or {},
    )

    def check(known: Known | IndexedImages) -> None:
        classes = None if known.labels is None else known.classes
        choose.refuse(wishes, classes=classes, captions=known.text is not None)

    if isinstance(images, IndexedImages):
        check(images)
        opened = images
    else:
        with dist.sequentially():
            opened = collection.open_images(images, check=check, tell=lambda text: listen(Note(text)))
    guide, needs = None, choose.wanted(wishes)
    if needs.model is not None:
        guide = init_weights.guide(str(wishes.options[needs.model]), str(method), needs)
    with dist.sequentially():
        everything = collection.checked(opened)
    if dist.is_distributed():
        dist.require_same("the images", everything.fingerprint)
    rows, notes = _training_rows(everything)
    if needs.text:
        rows, said = _captioned(everything, rows)
        notes += said
    if needs.labels:
        rows, said = _labelled(everything, rows)
        notes += said
    training, held = monitor.hold_out(rows, seed)
    if len(training) == len(rows):
        notes.append("too few images to hold some out: health is read on training images")
    some = everything.subset(training)
    chosen = {"head_warmup": head_warmup, "encoder_lr_scale": encoder_lr_scale}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    origin, first = None, None
    if init is not None:
        if out is None:
            words = (_stem(everything), *([] if method == "auto" else [method]), "from")
            out = Path("runs") / "-".join((*words, Path(init).name.rpartition(":")[2]))
        before = RunFolder(Path(out))
        told = before.config().get("init") if checkpoint.newest(before.checkpoints)[0] is not None else None
        told = dist.broadcast(told)
        origin, first = init_weights.find(str(Path(init)), told, allow_partial, chosen)
    elif allow_partial or chosen:
        name = "allow_partial" if allow_partial else next(iter(chosen))
        raise ValueError(f"{name} is about weights to go on from, and none are given: give --init too")
    facts = choose.Facts(
        images=len(some),
        shorter_side=(side := _shorter_side(some)),
        device=place.type,
        labels=opened.labels is not None,
        captions=opened.text is not None,
    )
    wishes = dataclasses.replace(wishes, init=origin)
    choice = choose.choose(facts, wishes)
    if out is None:
        out = Path("runs") / f"{_stem(everything)}-{choice.method}-{choice.model.replace('/', '-')}"
    folder = RunFolder(Path(out))

    def sized(batch: int) -> choose.Choice:
        return choose.choose(facts, dataclasses.replace(wishes, batch=batch))

    free = batch_size is None and accumulate is None
    parts = accumulate or 1
    fitted = dist.broadcast(folder.config().get("fitted")) if free else None
    if fitted is not None:  # to memory, when the run began
        choice, parts = sized(fitted["batch"]), fitted["accumulate"]
        notes.append(f"batch {fitted['batch']} in {parts} parts, as memory allowed when the run began")
    if choice.recipe.batch % (parts * dist.world_size()):
        raise ValueError(
            f"batch size {choice.recipe.batch} cannot be divided into {parts} parts on {dist.world_size()} "
            "processes: change --batch-size or --accumulate"
        )

    if precision == "auto":  # a measurement, which need not come out alike when a run is taken up again
        precision = folder.config().get("precision", precision)
    dtype = dist.broadcast(machine.pick_precision(precision, place))

    file = methods.get(choice.method)
    preprocess = preprocessing.measure(some, choice.image_size, seed=seed)
    if origin is not None:
        preprocess, said = init_weights.prepared(preprocess, preprocessing.from_dict(origin.preprocess))
        notes.append(said)
    torch.manual_seed(seed)
    encoder = backbones.build(
        name=choice.model,
        image_size=choice.image_size,
        channels=some.channels,
        **choice.encoder_options(),
    )
    needs = choose.needs_of(choice.method, choice.recipe.config)
    choose.suits(choice.method, needs, encoder, choice.image_size)
    if recompute and not encoder.repeated():
        raise ValueError(f"--recompute works block by block, and {choice.model} has none: leave it out")
    encoder.recompute = recompute
    if first is not None:  # before the method copies its encoder
        notes += init_weights.fill(encoder, first, allow_partial)
        first = None  # training needs the memory
    tokenizer, drawn = None, None
    if some.text is not None and needs.text and file.tokenizer is not None:
        usable = captions.fit(some.text)[1]
        tokenizer = file.tokenizer(choice.recipe.config, guide, captions.sample(usable))
        drawn = Captions(usable, tokenizer)
        notes += [
            f"captions are read with {tokenizer.vocabulary:,} tokens ({tokenizer.origin})",
            *drawn.cut(),
        ]
    given = Context(
        image_size=choice.image_size,
        images=len(some),
        classes=some.classes,
        preprocess=preprocess,
        model=guide,
        tokenizer=tokenizer,
    )
    built: Method = file.Method(encoder, choice.recipe.config, given)
    spread, said = _spread(shard, built, place, dtype)
    notes += said
    compile = choose.compiling(
        compile,
        device=place.type,
        blocks=bool(encoder.repeated()),
        profiled=profile,
        spread=spread,
        before=compile == "auto" and bool(folder.config().get("compile")),  # a measurement, too
    )
    if spread:
        fsdp.shard(built, place, dtype)
    built = built.to(place)
    ddp.same(built)
    moves = any(p.requires_grad for p in built.encoder.parameters())
    if origin is None and not moves:
        raise ValueError(
            f"{choice.method} leaves its encoder as it is with these options, and it has not learned yet: "
            "give weights to go on from (--init)"
        )
    watch = monitor.Monitor(
        everything.subset(held),
        some,
        preprocess,
        seed,
        len(training) < len(rows),
        blind=not needs.labels,
        continued=origin is not None,
        signals=built.health_signals(),
    )
    if watch.labels is not None and not watch.held_out:
        notes.append("k-NN is read on training images too: each is told by all others")
    labelled = None
    if origin is not None:
        labelled = fine_tune_groups.groups(built, origin.head_warmup, origin.encoder_lr_scale)
        notes.append(init_weights.treated(labelled, origin, moves))
        if watch.labels is None:
            notes.append(retention.UNTOLD)
    crops, kept = file.views(choice.recipe.config, choice.image_size), None
    if cache and loader.fits_in_memory(some):
        notes.append("no cache is needed: the images fit into memory, decoded")
    elif cache:
        kept = Cache(everything.subset(rows), augment.at_least(crops))
    if decoder is not None and loader.fits_in_memory(some):
        notes.append("the GPU has nothing to decode: the images fit into memory, decoded")
        decoder = None
    elif decoder is not None and not gpu_jpeg.any_plain(some):
        raise ValueError(
            f"{everything.source}: no JPEG is among {gpu_jpeg.LOOKED_AT} of its images: "
            "leave --decode gpu out"
        )
    run = Run(
        described=everything.describe(),
        images=some if kept is None else kept.images.subset(np.searchsorted(rows, training)),
        cache=kept,
        shorter_side=side,
        method=built,
        captions=drawn,
        crops=crops,
        preprocess=preprocess,
        optimizer=make_optimizer(built, choice.recipe, labelled),
        position=Position(0, 1, choice.recipe.batch, len(some)),
        choice=choice,
        folder=folder,
        monitor=watch,
        clock=clock,
        device=place,
        dtype=dtype,
        seed=seed,
        accumulate=parts,
        sized=sized if free and fitted is None else None,
        compile=compile,
        workers=workers,
        decode=decoder,
        listen=listen,
        part="all" if len(rows) == len(everything) else "train",
        notes=notes,
        skipped=list(everything.skipped),
        primary=dist.rank() == 0,
        watch=Profiler(built, place, dtype) if profile and dist.rank() == 0 else OFF,
    )
    ends_at = {"epochs": epochs, "steps": steps, "budget": clock.budget}
    settings = {
        "images": everything.source,
        "fingerprint": everything.fingerprint,
        "method": choice.method,
        "model": choice.model,
        "image_size": choice.image_size,
        "recipe": choice.recipe_name,
        "settings": dataclasses.asdict(choice.recipe),
        "end": {name: end for name, end in ends_at.items() if end is not None},
        "seed": seed,
        "precision": machine.precision_name(dtype),
        "accumulate": parts,
        **({"compile": True} if compile == "on" else {}),
        **({} if fitted is None else {"fitted": fitted}),
        **({} if kept is None else {"cache": kept.side}),
        **({} if decoder is None else {"decode": "gpu"}),
        **({"labels": "learned"} if needs.labels else {}),
        **({} if origin is None else {"init": dataclasses.asdict(origin)}),
        **({} if guide is None else {"learns_from": guide.digest}),
        **({} if tokenizer is None else {"tokenizer": _digest(tokenizer.merges)}),
    }
    with contextlib.ExitStack() as held:
        with dist.propagate_errors():
            if run.primary:
                folder.claim(settings)
                collection.write_skipped(folder.path / "skipped.csv", everything.skipped)
                held.enter_context(folder.locked(RELEASE if launcher.ranks().restarts else 0.0))
        done_before = folder.finished
        result = trainer.sit(run, epochs=epochs, steps=steps, checkpoint_every=checkpoint_every)
        if run.primary and folder.finished and not done_before:
            run_report.write_report(folder, watch.sample, seed)
        return result


def _spread(wish: str, method: Method, place: torch.device, dtype: torch.dtype) -> tuple[bool, list[str]]:
    """Is the network spread over processes, and what is to be said of it?"""
    trained = sum(p.numel() for group in method.groups() for p in group.params)
    others = sum(p.numel() for p in method.parameters()) - trained
    memory = torch.cuda.get_device_properties(place).total_memory if place.type == "cuda" else None
    return dist.broadcast(
        choose.spread(
            wish,
            processes=dist.world_size(),
            state=choose.state_bytes(trained, others, lowered=dtype != torch.float32),
            memory=memory,
            blocks=bool(method.encoder.repeated()),
        )
    )


def _stem(images: IndexedImages) -> str:
    return Path(images.source).stem or "images"


def _training_rows(images: IndexedImages) -> tuple[np.ndarray, list[str]]:
    """All images, or the train part of a data set that is split."""
    splits = images.splits
    if splits is None or not ((splits == "train").any() and (splits == "test").any()):
        return np.arange(len(images)), []
    rows = np.flatnonzero(splits == "train")
    return rows, [f"only the train part is used: {len(rows):,} of {len(images):,} images"]


def _labelled(images: IndexedImages, rows: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Those of the rows that have a label, and how many do not."""
    assert images.labels is not None
    known = rows[images.labels[rows] >= 0]
    if not len(known):
        raise ValueError(f"{images.source}: none of the images to train on has a label; see docs/input.md")
    left = len(rows) - len(known)
    return known, [f"{left:,} images without a label are left out"] if left else []


def _captioned(images: IndexedImages, rows: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Those of the rows that have a usable caption, and what became of the others."""
    text = images.subset(rows).text
    assert text is not None
    found, _ = captions.fit(text)
    if not found.has.any():
        why = "; ".join(found.notes()[1:]) or "they are missing"
        raise ValueError(f"{images.source}: no image has a usable caption ({why}); see docs/input.md")
    return rows[found.has], found.notes()


def _digest(merges: np.ndarray) -> str:
    return hashlib.sha256(merges.tobytes()).hexdigest()


def _shorter_side(images: IndexedImages) -> int:
    """Median over a sample, in pixels; of large collections some may turn out to be bad only now."""
    sides = []
    for i in range(0, len(images), max(1, len(images) // 16)):
        with contextlib.suppress(BadImage):
            sides.append(min(images.read(i).shape[:2]))
    if not sides:
        raise ValueError(f"{images.source}: none of a sample of its images can be read; check the files")
    return int(statistics.median(sides))
