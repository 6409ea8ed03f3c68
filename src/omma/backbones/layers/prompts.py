"""Prompts whose context is learned, not written: CoOp [Zhou 2021, arXiv 2109.01134].

[start] [V]_1 ... [V]_M [class] . [end], or with the class in the middle of the vectors V [eq. 2, 3].
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from omma.backbones.layers.text import BATCH, Paired, TextTower
from omma.core.errors import line
from omma.core.protocols import Extras
from omma.core.words import class_words

CONTEXT, FACT = "prompt.context", "prompt"  # names in `Extras.tensors` and `Extras.facts`
POSITIONS = ("end", "middle")


@dataclass(frozen=True)
class Learned:
    """A learned context, from which a classifier for any names is made.

    context: vectors in the place of words' embeddings, shared by all classes or a row for each of `classes`.
    position: of the class's name, "end" or "middle". classes: () where the context is shared.
    """

    context: Float[Tensor, "*c m d"]
    position: str = "end"
    classes: tuple[str, ...] = ()

    def extras(self) -> Extras:
        """What `restored` reads."""
        facts: dict[str, Any] = {"position": self.position}
        if self.classes:
            facts["classes"] = list(self.classes)
        return Extras({CONTEXT: self.context}, {FACT: facts})

    def of(self, classes: Sequence[str]) -> Float[Tensor, "*c m d"]:
        """The context of these classes; ValueError for one that has none of its own."""
        if not self.classes:
            return self.context
        rows = {name: row for row, name in enumerate(self.classes)}
        if unknown := [name for name in classes if name not in rows]:
            raise ValueError(
                f"the learned context has vectors of its own for each of its {len(rows):,} classes, and none "
                f"for {unknown[0]!r}: learn it again with these classes, or a shared one"
            )
        return self.context[[rows[name] for name in classes]]


def restored(extras: Extras, source: str) -> Learned | None:
    """The context that a model holds; None if there is none. Raises ValueError if it is damaged."""
    if CONTEXT not in extras.tensors:
        return None
    context, facts = extras.tensors[CONTEXT], extras.facts.get(FACT)
    try:
        assert isinstance(facts, Mapping)
        learned = Learned(context, facts["position"], tuple(facts.get("classes", ())))
        assert learned.position in POSITIONS
        assert (
            (context.ndim, len(context)) == (3, len(learned.classes))
            if learned.classes
            else context.ndim == 2
        )
    except (AssertionError, KeyError, TypeError) as error:
        raise ValueError(f"{source}: its learned context is damaged ({line(error)}); copy it again") from None
    return learned


class Slots(NamedTuple):
    """Embedded prompts of classes, with slots for the context."""

    embedded: Float[Tensor, "c l d"]  # zeros in the slots
    places: Int[Tensor, "c m"]  # of the slots
    end: Int[Tensor, "c"]  # of the end token

    def to(self, device: torch.device | str) -> "Slots":
        return Slots(*(x.to(device) for x in self))


def slots(paired: Paired, classes: Sequence[str], vectors: int, position: str = "end") -> Slots:
    """Prompts with `vectors` slots before each class's name, or half of them behind it.

    Raises ValueError for a name that is too long.
    """
    tower, tokenizer = paired.tower, paired.tokenizer
    assert tokenizer is not None
    ends, places, rows = [], [], []
    for name in classes:
        words = class_words(name)
        ids, length = tokenizer.encode(words + "."), len(tokenizer.encode(words))
        end = 1 + vectors + len(ids)
        if end >= tower.context:
            raise ValueError(
                f"class {name!r}: {len(ids)} tokens and {vectors} learned ones do not fit into the text "
                f"tower's {tower.context}: shorten the name, or learn fewer"
            )
        before = vectors if position == "end" else vectors // 2
        behind = list(range(1 + before + length, 1 + length + vectors))
        slot = [*range(1, 1 + before), *behind]
        rest = sorted(set(range(1, end)) - set(slot))
        row = torch.zeros(tower.context, dtype=torch.long)
        row[0], row[rest], row[end] = tokenizer.start, torch.tensor(ids, dtype=torch.long), tokenizer.end
        ends.append(end)
        places.append(slot)
        rows.append(row)
    length = -(-(max(ends) + 1) // 8) * 8
    where = torch.tensor(places, dtype=torch.long).reshape(len(classes), vectors)
    with torch.no_grad():
        embedded = tower.token_embed(torch.stack(rows)[:, :length].to(tower.token_embed.weight.device))
    return Slots(embedded, where.to(embedded.device), torch.tensor(ends, device=embedded.device))


def features(tower: TextTower, prompts: Slots, context: Float[Tensor, "*c m d"]) -> Float[Tensor, "c o"]:
    """Unit vectors of the prompts with this context.

    Of more than `BATCH` classes, activations are recomputed in the backward pass, a batch at a time.
    """
    each = context.expand(len(prompts.end), *context.shape[-2:])

    def embed(embedded: Tensor, places: Tensor, end: Tensor, vectors: Tensor) -> Tensor:
        index = places[:, :, None].expand(-1, -1, embedded.shape[-1])
        filled = embedded.scatter(1, index, vectors.to(embedded.dtype))
        return F.normalize(tower.of_embeddings(filled, end).float(), dim=-1)

    batches = zip(*(x.split(BATCH) for x in (*prompts, each)), strict=True)
    if len(each) <= BATCH or not torch.is_grad_enabled():
        return torch.cat([embed(*batch) for batch in batches])
    return torch.cat([checkpoint(embed, *batch, use_reentrant=False) for batch in batches])  # pyright: ignore


@torch.no_grad()
def class_vectors(
    paired: Paired, learned: Learned, classes: Sequence[str], device: torch.device | str = "cpu"
) -> Float[Tensor, "c o"]:
    """A unit vector for each class, by its name in the learned context, on the CPU in fp32.

    Raises ValueError if the context is the other classes' own, or a name is too long.
    """
    context = learned.of(classes)
    tower = paired.tower.to(device).eval()
    prompts = slots(paired, classes, context.shape[-2], learned.position)
    return features(tower, prompts, context.to(device)).cpu()
