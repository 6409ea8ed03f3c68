"""CLIP's text tower [Radford 2021, arXiv 2103.00020], and what a model that pairs images and texts keeps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from omma.backbones.layers.block import Attention, Block, Where
from omma.backbones.layers.mlp import ACTIVATIONS, Mlp
from omma.core.errors import line
from omma.core.protocols import Extras
from omma.data import text_tokenizer
from omma.data.text_tokenizer import Tokenizer
from omma.ops.norm import norm

TOWER, PROJECTION, MERGES = "text.", "projection.weight", "tokenizer.merges"  # names in `Extras.tensors`
TABLE = TOWER + "token_embed.weight"  # the one that a text tower is known by
EMBEDDED = 256  # texts a forward pass


class TextTower(nn.Module):
    """A causal transformer over a text's tokens; its feature is that of the token which ends it, projected.

    vocabulary, context: numbers that tokens may be, and the most of them. end: the number that ends a text.
    out: width of the space that images and texts share. mlp: "quickgelu", as OpenAI's, or "gelu".
    Parameters have the names of omma's blocks. Raises ValueError for values that do not go together.
    """

    causal: Tensor

    def __init__(
        self,
        *,
        vocabulary: int,
        end: int,
        context: int = text_tokenizer.CONTEXT,
        depth: int = 12,
        dim: int = 512,
        heads: int = 8,
        out: int = 512,
        hidden: int | None = None,
        mlp: str = "quickgelu",
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"a text tower {dim} wide cannot be cut into {heads} heads: choose a divisor")
        if mlp not in ACTIVATIONS:
            raise ValueError(f"mlp={mlp!r} of the text tower: choose {', '.join(ACTIVATIONS)}")
        self.facts = {"heads": heads, "mlp": mlp, "eps": eps, "end": end}  # what shapes do not tell
        self.end, self.context, self.out = end, context, out
        self.token_embed = nn.Embedding(vocabulary, dim)
        self.pos_embed = nn.Parameter(torch.empty(context, dim))
        perceptron: Any = mlp
        self.blocks = nn.Sequential(
            *(
                Block(dim, Attention(dim, heads), Mlp(dim, hidden or 4 * dim, perceptron), eps=eps)
                for _ in range(depth)
            )
        )
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.projection = nn.Linear(dim, out, bias=False)
        # a token sees itself and what stands before it
        self.register_buffer(
            "causal", torch.full((context, context), float("-inf")).triu(1), persistent=False
        )
        self._initialise(depth, dim)

    def _initialise(self, depth: int, dim: int) -> None:
        """As the paper's code does: residual branches shrink with their number."""
        nn.init.normal_(self.token_embed.weight, std=0.02)
        nn.init.normal_(self.pos_embed, std=0.01)
        into = dim**-0.5 * (2 * depth) ** -0.5
        deviations = {"attn.qkv": dim**-0.5, "attn.proj": into, "mlp.fc1": (2 * dim) ** -0.5, "mlp.fc2": into}
        for block in self.blocks:
            for name, deviation in deviations.items():
                layer = block.get_submodule(name)
                assert isinstance(layer, nn.Linear)
                nn.init.normal_(layer.weight, std=deviation)
                nn.init.zeros_(layer.bias)
        nn.init.normal_(self.projection.weight, std=dim**-0.5)

    def forward(self, tokens: Int[Tensor, "b l"]) -> Float[Tensor, "b o"]:
        """Features of texts, not normalised. Each row holds an end; what follows it changes nothing."""
        length = tokens.shape[1]
        x = self.token_embed(tokens) + self.pos_embed[:length]
        where = Where((0, 0), bias=self.causal[None, None, :length, :length])
        for block in self.blocks:
            x = block(x, where)
        last = (tokens == self.end).int().argmax(1)  # the first of them
        return self.projection(norm(x[torch.arange(len(x), device=x.device), last], self.norm))


# ---------------------------------------------------------------- kept beside an encoder
@dataclass(frozen=True)
class Paired:
    """How an encoder's features and texts come into one space.

    projection: of the images' pooled features. tokenizer: None where only the weights were published.
    """

    tower: TextTower
    projection: Float[Tensor, "o d"]
    tokenizer: Tokenizer | None

    def texts(self, texts: Sequence[str], device: torch.device | str = "cpu") -> Float[np.ndarray, "n o"]:
        """Unit vectors of texts, in fp32."""
        assert self.tokenizer is not None
        tower = self.tower.to(device).eval()
        rows = [np.zeros((0, tower.out), np.float32)]
        for first in range(0, len(texts), EMBEDDED):
            tokens = text_tokenizer.trimmed(self.tokenizer(texts[first : first + EMBEDDED]), tower.end).to(
                device
            )
            with torch.inference_mode():
                rows.append(F.normalize(tower(tokens).float(), dim=-1).cpu().numpy())
        return np.concatenate(rows)

    def images(self, features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n o"]:
        """Unit vectors of images, from their pooled features, in fp32."""
        return F.normalize(torch.from_numpy(features).float() @ self.projection.float().T, dim=-1).numpy()


def kept(
    tower: TextTower,
    projection: Float[Tensor, "o d"],
    merges: Int[np.ndarray, "m 2"] | None,
    others: Mapping[str, Tensor],
) -> Extras:
    """What rebuilds it: the tower, the images' projection, the tokenizer's merges; others: scale and bias.

    merges: None where they are not known.
    """
    tensors = {PROJECTION: projection, **others}
    tensors |= {TOWER + name: x for name, x in tower.state_dict().items()}
    if merges is not None:
        tensors[MERGES] = torch.from_numpy(np.asarray(merges, np.int32))
    return Extras(tensors, {"text": dict(tower.facts)})


def tower_of(tensors: Mapping[str, Tensor], facts: Mapping[str, Any], source: str) -> TextTower:
    """The tower that tensors (named as its parameters) and `facts` describe; ValueError where they do not."""
    try:
        vocabulary, dim = tensors["token_embed.weight"].shape
        depth = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks."))
        tower = TextTower(
            vocabulary=vocabulary,
            context=len(tensors["pos_embed"]),
            depth=depth,
            dim=dim,
            out=len(tensors["projection.weight"]),
            hidden=len(tensors["blocks.0.mlp.fc1.weight"]),
            heads=int(facts["heads"]),
            mlp=str(facts["mlp"]),
            eps=float(facts["eps"]),
            end=int(facts["end"]),
        )
        tower.load_state_dict({name: x.float() for name, x in tensors.items()})
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{source}: its text tower cannot be rebuilt ({line(error)}); copy it again"
        ) from error
    return tower.eval()


def restored(extras: Extras, source: str, merges: Int[np.ndarray, "m 2"] | None = None) -> Paired:
    """The text tower of a model, its projection and tokenizer, on the CPU in fp32.

    merges: the tokenizer's, where the model does not keep them. Raises ValueError in one line where there is
    no text tower, where it is damaged, or where the merges are another tokenizer's.
    """
    tensors = extras.tensors
    if TABLE not in tensors or PROJECTION not in tensors or "text" not in extras.facts:
        raise ValueError(
            f"{source} has no text tower: train one (omma pretrain --method clip), or give CLIP's published "
            "weights (docs/clip.md)"
        )
    own = {n.removeprefix(TOWER): x for n, x in tensors.items() if n.startswith(TOWER)}
    tower = tower_of(own, extras.facts["text"], source)
    if MERGES in tensors:
        merges = text_tokenizer.checked(tensors[MERGES].numpy(), source)
    tokenizer = None if merges is None else Tokenizer(merges, tower.context)
    if tokenizer is not None and (tokenizer.vocabulary, tokenizer.end) != (
        len(own["token_embed.weight"]),
        tower.end,
    ):
        raise ValueError(
            f"{source}: its text tower knows {len(own['token_embed.weight']):,} tokens, these merges make "
            f"{tokenizer.vocabulary:,}: give the merges that it was trained with"
        )
    return Paired(tower, tensors[PROJECTION], tokenizer)
