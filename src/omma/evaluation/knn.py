"""k-nearest-neighbour classification by a weighted vote (1805.01978), which trains nothing."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from omma.evaluation.split import Answer, Split, checked
from omma.ops.nearest import top

KS = (10, 20, 100, 200)
HEADLINE = 20  # the k that tables show: fixed beforehand, not chosen on the test part
TEMPERATURE = 0.07


def capped(ks: Sequence[int], bank: int) -> tuple[int, ...]:
    """The distinct ks, none above the number of train images, ascending."""
    if min(ks) < 1:
        raise ValueError(f"k={min(ks)}: must be at least 1")
    return tuple(sorted({min(k, bank) for k in ks}))


def predict_each(
    data: Split, ks: Sequence[int] = KS, temperature: float = TEMPERATURE, device: torch.device | str = "cpu"
) -> dict[int, Int[np.ndarray, "m"]]:
    """Predicted labels of the test part for every (capped) k; the data are checked first."""
    data = checked(data)
    ks = capped(ks, len(data.train))
    return _vote(data.train, data.train_labels, data.test, ks, temperature, device)[0]


def answers(
    data: Split, ks: Sequence[int] = KS, temperature: float = TEMPERATURE, device: torch.device | str = "cpu"
) -> dict[int, Answer]:
    """`predict_each`; the answer for the k that tables show has each class's share of the vote as scores."""
    data = checked(data)
    ks, classes = capped(ks, len(data.train)), data.classes
    shown = nearest_k(ks)
    predictions, votes = _vote(data.train, data.train_labels, data.test, ks, temperature, device, shown)
    assert votes is not None
    scores = np.zeros((len(votes), classes), np.float32)  # the last classes may have test images alone
    scores[:, : votes.shape[1]] = votes
    none = np.zeros((0, classes), np.float32)
    return {k: Answer(p, {}, scores if k == shown else none) for k, p in predictions.items()}


@torch.inference_mode()
def shares_of_sets(
    bank: Float[np.ndarray, "n d"],
    sets: Int[np.ndarray, "n k"],
    queries: Float[np.ndarray, "m d"],
    k: int = HEADLINE,
    temperature: float = TEMPERATURE,
) -> tuple[int, Float[np.ndarray, "m k"]]:
    """With several labels an image: the (capped) k, and the share of the vote that says a class applies.

    sets: 1, it does; 0, it does not; -1, not known: that neighbour does not vote on the class.
    """
    (k,) = capped((k,), len(bank))
    unit, labels = _unit(torch.from_numpy(bank).float()), torch.from_numpy(np.asarray(sets, np.float32))
    shares = []
    for chunk in torch.from_numpy(queries).float().split(max(1, 2**26 // len(bank))):
        near, index = top(_unit(chunk) @ unit.T, k)
        votes = ((near - near[:, :1]) / temperature).exp()[:, :, None]
        own = labels[index]
        shares.append((votes * (own > 0)).sum(1) / (votes * (own >= 0)).sum(1).clamp(min=1e-12))
    return k, torch.cat(shares).numpy()


def nearest_k(ks: Iterable[int]) -> int | None:
    """The k that tables show: HEADLINE, or the nearest to it; None without any."""
    return min(ks, key=lambda k: abs(k - HEADLINE), default=None)


def predict(
    bank: Float[np.ndarray, "n d"],
    bank_labels: Int[np.ndarray, "n"],
    queries: Float[np.ndarray, "m d"] | None,
    k: int = HEADLINE,
    temperature: float = TEMPERATURE,
    device: torch.device | str = "cpu",
    groups: Int[np.ndarray, "n"] | None = None,
) -> Int[np.ndarray, "m"]:
    """Predicted labels of `queries` for one (capped) k; None: of the bank's images, each by all others.

    groups: of the bank's images, without queries; each is then classified by those of other groups. Raises
    ValueError if there is only one.
    Unlike `predict_each` it accepts features that are not finite and a bank of one class, so that an
    evaluation during training cannot end the run.
    """
    (k,) = capped((k,), len(bank) - (queries is None))
    if groups is not None and queries is None and len(np.unique(groups)) < 2:
        raise ValueError(
            "all images are of one group, so none is left to classify by; give two groups or more"
        )
    return _vote(bank, bank_labels, queries, (k,), temperature, device, groups=groups)[0][k]


@torch.inference_mode()
def _vote(
    bank_features: Float[np.ndarray, "n d"],
    labels_of_bank: Int[np.ndarray, "n"],
    query_features: Float[np.ndarray, "m d"] | None,
    ks: tuple[int, ...],
    temperature: float,
    device: torch.device | str,
    share_for: int | None = None,
    groups: Int[np.ndarray, "n"] | None = None,
) -> tuple[dict[int, Int[np.ndarray, "m"]], Float[np.ndarray, "m c"] | None]:
    """Each neighbour votes exp(cos / T) for its class [Wu 2018, §3.4].

    Predictions for each k; for `share_for`, one of them, also the shares of the vote by class, fp32.

    Deterministic: ties in distance go to the first in the bank, ties in votes to the lowest label. Queries
    are taken in chunks of about 256 MB. Without queries, every image of the bank leaves itself out, or its
    group; a neighbour that is left out has no vote, should k reach it.
    """
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: must be above 0")
    bank = _unit(torch.from_numpy(bank_features).to(device))
    bank_labels = torch.from_numpy(labels_of_bank).to(device)
    classes = int(bank_labels.max()) + 1
    chunk = max(1, 2**26 // len(bank))
    predicted: dict[int, list[Tensor]] = {k: [] for k in ks}
    shares: list[Tensor] = []
    own = None if groups is None else torch.from_numpy(groups).to(device)
    all_queries = torch.from_numpy(bank_features if query_features is None else query_features)
    for i, queries in enumerate(all_queries.to(device).split(chunk)):
        similarity = _unit(queries) @ bank.T
        if query_features is None:
            similarity.diagonal(i * chunk).fill_(-torch.inf)
            if own is not None:
                similarity[own[i * chunk : i * chunk + len(queries), None] == own] = -torch.inf
        near, index = top(similarity, ks[-1])
        votes = ((near - near[:, :1]) / temperature).exp()  # relative to the nearest, so that no T overflows
        labels = bank_labels[index]
        for k in ks:
            scores = votes.new_zeros(len(queries), classes)
            scores.scatter_add_(1, labels[:, :k], votes[:, :k])
            predicted[k].append(scores.argmax(dim=1))
            if k == share_for:
                shares.append((scores / scores.sum(1, keepdim=True)).cpu())
    predictions = {k: torch.cat(chunks).cpu().numpy() for k, chunks in predicted.items()}
    return predictions, torch.cat(shares).numpy() if shares else None


def _unit(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x, dim=1)
