"""Does a map depend on what was learned? Randomise the network by layers [Adebayo 2018, 1810.03292]."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import rankdata
from torch import Tensor

from omma.core.protocols import Backbone, Extras
from omma.inspection.kinds import Curves, Explanation, Figures, Judged, Kind, Subject
from omma.weights import Model

LIMIT = 0.3  # a map that resembles that of a random network more than this does not show what was learned
UNLIKE = 7_919  # added to the seed
STAGES = 6  # of the network, at most; each needs all maps again


class Cascade(NamedTuple):
    """How much of the maps is left as more layers are random, from the top."""

    stages: tuple[str, ...]
    likeness: Mapping[
        str, Float[np.ndarray, "stages n"]
    ]  # of each kind: rank correlation of each image's map

    def at_end(self, kind: str) -> float:
        """Mean likeness to the maps of a network that is all random."""
        return float(self.likeness[kind][-1].mean())


def spearman(a: Float[np.ndarray, "n *shape"], b: Float[np.ndarray, "n *shape"]) -> Float[np.ndarray, "n"]:
    """Rank correlation of each pair of maps, ties at their mean rank; 0 where one of the two is constant."""
    ranks = [rankdata(x.reshape(len(x), -1), axis=1) for x in (a, b)]
    x, y = (r - r.mean(1, keepdims=True) for r in ranks)
    length = np.sqrt((x**2).sum(1) * (y**2).sum(1))
    return np.where(length > 0, (x * y).sum(1) / np.where(length > 0, length, 1), 0.0)


def cascade(kinds: Sequence[Kind], subject: Subject, stages: int = STAGES) -> Cascade:
    """Compare each kind's absolute maps with those of networks that are random from the top downwards.

    [Adebayo 2018, section 3.1]. The class that is explained stays that of the trained network.
    """
    trained = {kind.name: _absolute(kind, subject) for kind in kinds}
    names, likeness = [], {kind.name: [] for kind in kinds}
    steps = list(randomised(subject.model, subject.seed, stages))
    for done, (name, model) in enumerate(steps):
        other = subject.with_model(model)
        names.append(name)
        for kind in kinds:
            likeness[kind.name].append(spearman(trained[kind.name], _absolute(kind, other)))
        subject.progress("sanity: stages made random", done + 1, len(steps))
    return Cascade(tuple(names), {kind: np.stack(rows) for kind, rows in likeness.items()})


def _absolute(kind: Kind, subject: Subject) -> Float[np.ndarray, "n h w"]:
    assert kind.one_map is not None, "the caller has chosen kinds with maps"
    return np.abs(np.nan_to_num(kind.one_map(subject)))


def randomised(model: Model, seed: int, stages: int = STAGES) -> Iterator[tuple[str, Model]]:
    """(what is random, the model): first the classifier, then the encoder's stages, the last first.

    Random weights are those that the architecture starts a training with; buffers (batch norms' statistics)
    are reset with their layers.
    """
    first = next(model.encoder.parameters())
    # not the seed itself, which may be that of the training, whose first weights some layers may still have
    fresh = model.untrained(seed + UNLIKE).encoder.to(first.device, first.dtype).state_dict()
    state = {name: x.clone() for name, x in model.encoder.state_dict().items()}
    extras = model.extras
    if model.classifier is not None:
        generator = torch.Generator().manual_seed(seed)
        tensors = {
            name: _noise(x, generator) if name.startswith(("classifier.", "distilled.")) else x
            for name, x in extras.tensors.items()
        }
        extras = Extras(tensors, extras.facts)
        yield "classifier", Model(_copy(model.encoder, state), model.preprocess, model.provenance, extras)
    groups = by_stage(model.encoder)
    per = -(-len(groups) // stages)
    cut = [groups[max(0, end - per) : end] for end in range(len(groups), 0, -per)]
    for part in cut:
        for name in [name for group in part for name in group]:
            state[name] = fresh[name]
        encoder = _copy(model.encoder, state)
        label = part[0][0].rsplit(".", 1)[0]
        yield f"down to {label}", Model(encoder, model.preprocess, model.provenance, extras)


def by_stage(encoder: Backbone) -> list[list[str]]:
    """Names of parameters and buffers, in groups from the first layer to the last.

    Those of `Backbone.by_depth`; where it knows no layers, modules in their order, by the first two parts of
    their names, in which timm and torchvision number their stages.
    """
    state = list(encoder.state_dict())
    depth = encoder.by_depth()
    if len(depth) > 1:
        place = {id(p): i for i, group in enumerate(depth) for p in group}
        groups: list[list[str]] = [[] for _ in depth]
        last = 0
        named = {**dict(encoder.named_buffers()), **dict(encoder.named_parameters())}
        for name in state:
            last = place.get(id(named[name]), last)  # a buffer goes with the parameters before it
            groups[last].append(name)
        return [group for group in groups if group]
    stages: dict[str, list[str]] = {}
    for name in state:
        words = name.split(".")
        stages.setdefault(".".join(words[:2]) if len(words) > 2 else words[0], []).append(name)
    return list(stages.values())


def _copy(encoder: Backbone, state: Mapping[str, Tensor]) -> Backbone:
    other = copy.deepcopy(encoder)
    other.load_state_dict(dict(state))
    return other.eval()


def _noise(x: Tensor, generator: torch.Generator) -> Tensor:
    """Normal numbers of the tensor's mean and deviation."""
    if not x.is_floating_point():
        return x
    noise = torch.randn(x.shape, generator=generator).to(x.device, x.dtype)
    return x.mean() + x.std(correction=0) * noise


def test(kinds: Sequence[Kind], subject: Subject) -> tuple[Explanation, dict[str, str]]:
    """The section of the page, and a sentence for each kind."""
    found = cascade(kinds, subject)
    judged, rows, sentences = [], [], {}
    axis = list(range(1, len(found.stages) + 1))
    lines = tuple((kind.name, axis, found.likeness[kind.name].mean(1)) for kind in kinds)
    for kind in kinds:
        end = found.at_end(kind.name)
        good = end < LIMIT
        sentences[kind.name] = (
            f"With all weights random the maps {'change' if good else 'hardly change'} "
            f"(rank correlation {end:.2f}, limit {LIMIT})"
            + ("." if good else ": they show the image or the architecture more than what was learned.")
        )
        judged.append(Judged(f"{kind.name}: sanity", sentences[kind.name], good))
        rows.append((kind.name, *(f"{x:.2f}" for x in found.likeness[kind.name].mean(1))))
    caption = (
        "Each map compared with that of the same network whose layers are made random one after the other, "
        f"from the classifier down [Adebayo 2018]: mean rank correlation over {len(subject.pixels)} images. "
        f"A map that stays the same does not show what was learned; below {LIMIT} with all weights random, "
        "it passes."
    )
    shows = (
        Curves("Rank correlation with the trained network's maps, by stages made random", lines),
        Figures(("random", *found.stages), tuple(rows)),
    )
    arrays = {f"sanity.{name}": values for name, values in found.likeness.items()}
    return Explanation("Sanity", caption, shows, arrays, judged=tuple(judged)), sentences
