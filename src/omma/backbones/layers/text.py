"""CLIP's text tower [Radford 2021, arXiv 2103.00020], and how it is saved beside an image encoder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

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
TABLE = TOWER + "token_embed.weight"  # its presence shows that there is a text tower
BATCH = 256  # texts per forward pass


class TextTower(nn.Module):
    """A causal transformer over a text's tokens; its feature is that of the end token, projected.

    vocabulary: number of token ids. context: most tokens of a text. end: id of the end token. out: width of
    the space that images and texts share. mlp: "quickgelu", as OpenAI's, or "gelu". mlp_biases: the MLPs'
    start as PyTorch draws them, as in OpenAI's code, rather than at 0. Parameters have the names of omma's
    blocks. Raises ValueError for unknown values and impossible combinations.
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
        mlp_biases: bool = False,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"a text tower {dim} wide cannot be split into {heads} heads: choose a divisor")
        if mlp not in ACTIVATIONS:
            raise ValueError(f"mlp={mlp!r} of the text tower: choose {', '.join(ACTIVATIONS)}")
        self.facts = {"heads": heads, "mlp": mlp, "eps": eps, "end": end}  # that do not follow from shapes
        self.end, self.context, self.out = end, context, out
        self.token_embed = nn.Embedding(vocabulary, dim)
        self.pos_embed = nn.Parameter(torch.empty(context, dim))
        activation, hidden = cast(Any, mlp), hidden or 4 * dim
        layers = (
            Block(dim, Attention(dim, heads), Mlp(dim, hidden, activation), eps=eps) for _ in range(depth)
        )
        self.blocks = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.projection = nn.Linear(dim, out, bias=False)
        causal = torch.full((context, context), float("-inf")).triu(1)
        self.register_buffer("causal", causal, persistent=False)
        self._initialise(depth, dim, mlp_biases)

    def _initialise(self, depth: int, dim: int, mlp_biases: bool) -> None:
        """As in the paper's code: the last layers of residual branches start smaller in deeper towers."""
        nn.init.normal_(self.token_embed.weight, std=0.02)
        nn.init.normal_(self.pos_embed, std=0.01)
        last = dim**-0.5 * (2 * depth) ** -0.5
        deviations = {"attn.qkv": dim**-0.5, "attn.proj": last, "mlp.fc1": (2 * dim) ** -0.5, "mlp.fc2": last}
        for block in self.blocks:
            for name, deviation in deviations.items():
                layer = block.get_submodule(name)
                assert isinstance(layer, nn.Linear)
                nn.init.normal_(layer.weight, std=deviation)
                bound = layer.in_features**-0.5
                if mlp_biases and name.startswith("mlp"):
                    nn.init.uniform_(layer.bias, -bound, bound)
                else:
                    nn.init.zeros_(layer.bias)
        nn.init.normal_(self.projection.weight, std=dim**-0.5)

    def forward(self, tokens: Int[Tensor, "b l"]) -> Float[Tensor, "b o"]:
        """Features of texts, not normalised. Each row has an end token; later tokens are ignored."""
        end = (tokens == self.end).int().argmax(1)  # the first one
        return self.of_embeddings(self.token_embed(tokens), end)

    def of_embeddings(self, embedded: Float[Tensor, "b l d"], end: Int[Tensor, "b"]) -> Float[Tensor, "b o"]:
        """The same of tokens' embeddings, some of which may be learned; end: the end token's place."""
        length = embedded.shape[1]
        x = embedded + self.pos_embed[:length]
        where = Where((0, 0), bias=self.causal[None, None, :length, :length])
        for block in self.blocks:
            x = block(x, where)
        return self.projection(norm(x[torch.arange(len(x), device=x.device), end], self.norm))


# ---------------------------------------------------------------- saved beside an encoder
@dataclass(frozen=True)
class Paired:
    """Maps texts and an encoder's features into one space.

    projection: of the images' pooled features. tokenizer: None if its merges are not known.
    """

    tower: TextTower
    projection: Float[Tensor, "o d"]
    tokenizer: Tokenizer | None

    def texts(self, texts: Sequence[str], device: torch.device | str = "cpu") -> Float[np.ndarray, "n o"]:
        """Unit vectors of texts, in fp32."""
        assert self.tokenizer is not None
        tower = self.tower.to(device).eval()
        rows = [np.zeros((0, tower.out), np.float32)]
        for first in range(0, len(texts), BATCH):
            tokens = text_tokenizer.trimmed(self.tokenizer(texts[first : first + BATCH]), tower.end)
            with torch.inference_mode():
                rows.append(F.normalize(tower(tokens.to(device)).float(), dim=-1).cpu().numpy())
        return np.concatenate(rows)

    def images(self, features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n o"]:
        """Unit vectors of images, from their pooled features, in fp32."""
        return F.normalize(torch.from_numpy(features).float() @ self.projection.float().T, dim=-1).numpy()


def extras(
    tower: TextTower,
    projection: Float[Tensor, "o d"],
    merges: Int[np.ndarray, "m 2"] | None,
    scalars: Mapping[str, Tensor],
    repaired: bool = False,
) -> Extras:
    """Extras from which `restored` rebuilds tower, projection and tokenizer.

    merges: None if they are not known. scalars: the logits' scale and bias. repaired: the tokenizer repairs
    texts by ftfy, as its tower was trained.
    """
    tensors = {PROJECTION: projection, **scalars}
    tensors |= {TOWER + name: x for name, x in tower.state_dict().items()}
    if merges is not None:
        tensors[MERGES] = torch.from_numpy(np.asarray(merges, np.int32))
    return Extras(tensors, {"text": dict(tower.facts) | ({"repaired": True} if repaired else {})})


def tower_of(tensors: Mapping[str, Tensor], facts: Mapping[str, Any], source: str) -> TextTower:
    """The tower of tensors (by parameter name) and `facts`; ValueError where they do not describe one."""
    try:
        vocabulary, dim = tensors["token_embed.weight"].shape
        depth = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks."))
        tower = TextTower(
            vocabulary=vocabulary, context=len(tensors["pos_embed"]), depth=depth, dim=dim,
            out=len(tensors["projection.weight"]), hidden=len(tensors["blocks.0.mlp.fc1.weight"]),
            heads=int(facts["heads"]), mlp=str(facts["mlp"]), eps=float(facts["eps"]), end=int(facts["end"]),
        )  # fmt: skip
        tower.load_state_dict({name: x.float() for name, x in tensors.items()})
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = line(error)
        raise ValueError(f"{source}: its text tower cannot be rebuilt ({reason}); copy it again") from error
    return tower.eval()


def restored(extras: Extras, source: str, merges: Int[np.ndarray, "m 2"] | None = None) -> Paired:
    """The text tower of a model, its projection and tokenizer, on the CPU in fp32.

    merges: the tokenizer's, for a model without them. Raises ValueError if there is no text tower, if it is
    damaged, or if the merges are another tokenizer's.
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
    repaired = extras.facts["text"].get("repaired") is True
    tokenizer = None if merges is None else Tokenizer(merges, tower.context, repaired=repaired)
    vocabulary = len(own["token_embed.weight"])
    if tokenizer is not None and (tokenizer.vocabulary, tokenizer.end) != (vocabulary, tower.end):
        raise ValueError(
            f"{source}: its text tower knows {vocabulary:,} tokens, these merges make "
            f"{tokenizer.vocabulary:,}: give the merges that it was trained with"
        )
    return Paired(tower, tensors[PROJECTION], tokenizer)
