"""Weights that a run starts from: found, put into its encoder, and the images prepared as they expect."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omma import methods, weights
from omma.backbones import adapters
from omma.core import dist
from omma.core.protocols import Backbone, ParamGroup, Preprocess
from omma.data.batches import preprocess as preprocessing
from omma.pretraining import requirements
from omma.pretraining.folder import RunFolder
from omma.pretraining.request import Request
from omma.train import checkpoint
from omma.train.fine_tune_groups import Origin
from omma.weights import Model


@dataclass(frozen=True)
class Start:
    """Weights that a run starts from."""

    origin: Origin
    model: Model | None  # None in a run that is resumed, which needs them no more


def default_out(request: Request, stem: str) -> Path | None:
    """The run folder of a run that starts from weights; None if there are none. stem: the images' name."""
    if request.init is None:
        return None
    method = [] if request.method == "auto" else [request.method]
    method += [] if request.adapt is None else [request.adapt]
    return Path("runs") / "-".join((stem, *method, "from", Path(request.init).name.rpartition(":")[2]))


def find(request: Request, folder: RunFolder) -> Start:
    """The weights that the user names; a run with checkpoints needs no more than where they came from."""
    assert request.init is not None
    source, gently = str(Path(request.init)), _gently(request)
    resumed = bool(checkpoint.paths(folder.checkpoints))
    before = dist.broadcast(folder.config().get("init") if resumed else None)
    if before and before["source"] == source:
        return Start(dataclasses.replace(Origin(**before), **gently), None)
    model = weights.load(source, architecture=request.architecture, allow_partial=request.allow_partial)
    facts: dict[str, Any] = {
        "digest": model.digest,
        "spec": model.encoder.spec(),
        "patch": model.encoder.patch,
        "preprocess": preprocessing.as_dict(model.preprocess),
    }
    if request.method == methods.FINE_TUNING:
        facts["pretrained_by"] = model.provenance.get("method")
    facts = json.loads(json.dumps(facts))  # as it will be read from config.json
    return Start(Origin(source=source, **facts, **gently), model)


def _gently(request: Request) -> dict[str, Any]:
    """How the weights are treated: an adapter leaves them as they are, a classifier's recipe says how."""
    frozen = request.adapt is not None and adapters.freezes(request.adapt)
    alone = frozen or request.method == methods.FINE_TUNING
    return {**({"head_warmup": 0.0, "encoder_lr_scale": 1.0} if alone else {}), **request.init_options()}


def teacher(request: Request) -> Model | None:
    """The trained model that the named method learns from, with what it needs beside the encoder."""
    needs = requirements.of_request(request)
    if needs.model is None:
        return None
    source = str((request.options or {})[needs.model])
    model = weights.load(source)
    if needs.beside and not any(name in model.extras.tensors for name in needs.beside):
        raise ValueError(
            f"{source} is not what {request.method} learns from, {needs.kind}: choose another model"
        )
    return model


def fill(encoder: Backbone, model: Model, allow_partial: bool) -> list[str]:
    """Put the weights into the encoder, converted if its size differs; the notes say what became of them."""
    notes = list(model.provenance.get("loaded", ()))
    state, own = model.encoder.state_dict(), encoder.state_dict()
    if {n: x.shape for n, x in state.items()} != {n: x.shape for n, x in own.items()}:
        return notes + weights.fit(model, encoder, allow_partial)
    encoder.load_state_dict(state)
    return notes


def prepared(measured: Preprocess, own: Preprocess) -> tuple[Preprocess, str]:
    """The weights' own preprocessing if the images are of the kind that it was made for, and the reason."""

    def eight_bit(p: Preprocess) -> bool:
        return set(p.low) == {0.0} and set(p.high) == {255.0}

    if own.channels != measured.channels:
        why = f"the weights were made for {own.channels} channels, these images have {measured.channels}"
        return measured, f"normalised as measured here: {why}"
    if eight_bit(own) != eight_bit(measured):
        kinds = ("8-bit", "other") if eight_bit(own) else ("other", "8-bit")
        return (
            measured,
            f"normalised as measured here: the weights were made for {kinds[0]} values, not {kinds[1]}",
        )
    return dataclasses.replace(own, size=measured.size), "normalised as the weights expect it"


def describe(groups: Sequence[ParamGroup], origin: Origin, encoder: Backbone) -> str:
    """How the weights are treated, for the user."""
    own = {id(p) for p in encoder.parameters() if p.requires_grad}
    encoders = [group for group in groups if any(id(p) in own for p in group.params)]
    if not encoders:
        return f"starts from {origin.source}: its encoder stays as it is"
    if encoder.frozen:
        learns = sum(p.numel() for group in encoders for p in group.params)
        every = sum(p.numel() for p in encoder.parameters())
        what = f"{learns:,} of its encoder's {every:,} parameters learn"
        return f"starts from {origin.source}: {what} ({encoder.adapter})"
    share = max(group.frozen_share for group in encoders)
    frozen = f"its encoder is frozen for the first {share:.0%} of the run, then" if share else "its encoder"
    scales = sorted({group.lr_scale for group in encoders})
    rate = f"{scales[-1]:.3g} times the learning rate"
    rate += f", falling to {scales[0]:.2g} times it in the first layer" if scales[0] < scales[-1] else ""
    return f"starts from {origin.source}: {frozen} learns at {rate}"
