"""Weights that a run goes on from: found, put into its encoder, and the images prepared as they expect."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from omma import weights
from omma.core.protocols import Backbone, Needs, ParamGroup, Preprocess
from omma.data.batches import preprocess as preprocessing
from omma.train.fine_tune_groups import Origin
from omma.weights import Model


def find(
    source: str, told: Mapping[str, Any] | None, allow_partial: bool, chosen: Mapping[str, Any]
) -> tuple[Origin, Model | None]:
    """Where the weights come from, and they.

    told: the origin of a run that has checkpoints: where it is the same, the weights are needed no more and
    None is returned for them. chosen: fields of `Origin` that the user set.
    """
    if told and told["source"] == source:
        return dataclasses.replace(Origin(**told), **chosen), None
    model = weights.load(source, allow_partial=allow_partial)
    facts: dict[str, Any] = {
        "digest": model.digest,
        "spec": model.encoder.spec(),
        "patch": model.encoder.patch,
        "preprocess": preprocessing.as_dict(model.preprocess),
    }
    facts = json.loads(json.dumps(facts))  # as it will be read from config.json
    return Origin(source=source, **facts, **chosen), model


def guide(source: str, method: str, needs: Needs) -> Model:
    """The trained model that a method learns from, with what it needs beside the encoder."""
    model = weights.load(source)
    if needs.beside and not any(name in model.extras.tensors for name in needs.beside):
        raise ValueError(f"{source} is not what {method} learns from, {needs.kind}: choose another")
    return model


def fill(encoder: Backbone, model: Model, allow_partial: bool) -> list[str]:
    """Put the weights into the encoder, converted where its size differs; what became of them, in lines."""
    lines = list(model.provenance.get("loaded", ()))
    state, wanted = model.encoder.state_dict(), encoder.state_dict()
    if {n: x.shape for n, x in state.items()} != {n: x.shape for n, x in wanted.items()}:
        return lines + weights.fit(model, encoder, allow_partial)
    encoder.load_state_dict(state)
    return lines


def prepared(measured: Preprocess, own: Preprocess) -> tuple[Preprocess, str]:
    """The weights' own preprocessing where the images are of the kind that it was made for, and why."""

    def bytes_(p: Preprocess) -> bool:
        return set(p.low) == {0.0} and set(p.high) == {255.0}

    if own.channels != measured.channels:
        why = f"the weights were made for {own.channels} channels, these images have {measured.channels}"
        return measured, f"normalised as measured here: {why}"
    if bytes_(own) != bytes_(measured):
        kinds = ("8-bit", "other") if bytes_(own) else ("other", "8-bit")
        return (
            measured,
            f"normalised as measured here: the weights were made for {kinds[0]} values, not {kinds[1]}",
        )
    return dataclasses.replace(own, size=measured.size), "normalised as the weights expect it"


def treated(groups: Sequence[ParamGroup], origin: Origin, moves: bool = True) -> str:
    """What the user is told; moves: does the encoder learn at all?"""
    if not moves:
        return f"goes on from {origin.source}: its encoder stays as it is"
    share = max(group.frozen_share for group in groups)
    frozen = f"its encoder is frozen for the first {share:.0%} of the run, then" if share else "its encoder"
    rate = f"{origin.encoder_lr_scale:g} times the learning rate"
    return f"goes on from {origin.source}: {frozen} learns at {rate}"
