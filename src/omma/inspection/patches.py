"""What a feature stands for: the patches that answer to it most, and what in them it answers to.

Patches are found by streaming a collection. A deconvolution-like view shows what in a patch raises the
feature: on networks of ReLUs the guided gradient [Springenberg 2014, 1412.6806], which passes back only what
is positive both ways, elsewhere gradient times input [Shrikumar 2016, 1605.01713]. Guided gradients follow
edges more than weights [Adebayo 2018, 1810.03292], so the view is compared with that of random weights, and
the result is said.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from omma.core.protocols import Backbone, Features, Images
from omma.data.batches.preprocess import load_batch
from omma.features.extract import batch_size, stream, with_channels
from omma.inspection.kinds import Explanation, Kind, Picture, Rows, Subject
from omma.inspection.sanity import LIMIT, spearman
from omma.inspection.shown import limits, shown
from omma.weights import Model

SHOWN = 8  # patches of a feature
FEATURES = 6  # that are drawn where none is named
TIE = 1e-3  # of the mean around a patch, added where patches are ordered
MASS = 0.5  # share of the gradient that a patch's crop holds
RELUS = (nn.ReLU, nn.ReLU6)


class Strongest(NamedTuple):
    """The strongest patches of features, each from another image, strongest first."""

    features: Int[np.ndarray, "f"]
    values: Float[np.ndarray, "f k"]  # k: images there are, if fewer than were asked for
    images: Int[np.ndarray, "f k"]  # rows of the collection
    positions: Int[np.ndarray, "f k"]  # of the patch, row by row of the grid


def strongest(
    network: Backbone,
    images: Images,
    preprocess: Any,
    features: Sequence[int] | None = None,
    k: int = SHOWN,
    most: int = FEATURES,
    progress: Callable[[int, int], None] | None = None,
) -> Strongest:
    """The k patches with the largest values of each feature, a number of the patches' vectors, one an image.

    features: None takes the `most` features that vary most over all patches. Equal values, as where
    activations saturate (ReLU6), go by their surroundings. A batch is in memory at a time.
    Raises ValueError for features that do not exist, and where no image can be read.
    """
    if bad := [each for each in features or () if not 0 <= each < network.dim]:
        raise ValueError(f"feature {bad[0]}: the model has features 0 to {network.dim - 1}")
    best = torch.zeros((network.dim, 0)).double()
    where = torch.zeros((network.dim, 0, 3)).double()  # image, position, value
    total, squares, patches, done = torch.zeros(network.dim).double(), torch.zeros(network.dim).double(), 0, 0
    chosen = None if not features else torch.as_tensor(list(features))

    def read(found: Features) -> Tensor:
        nonlocal total, squares, patches
        own = found.patches.float()
        total = total + own.double().sum((0, 1)).cpu()
        squares = squares + own.double().square().sum((0, 1)).cpu()
        patches += own.shape[0] * own.shape[1]
        around = _around(own, found.grid)
        at = (own.double() + TIE * around).argmax(1, keepdim=True)
        picked = (own.gather(1, at)[:, 0], around.gather(1, at)[:, 0].float(), at[:, 0].float())
        return torch.stack(picked, -1)  # positions are whole numbers far below 2^24

    for batch in stream(network, images, preprocess, of=read):
        done += len(batch.indices) + len(batch.bad)
        if len(batch.indices):
            new = torch.from_numpy(batch.vectors).double()  # [b, d, 3]
            rows = torch.from_numpy(batch.indices)[:, None].expand(-1, network.dim)
            best = torch.cat([best, (new[..., 0] + TIE * new[..., 1]).T], 1)
            own = torch.stack([rows.double(), new[..., 2], new[..., 0]], -1).transpose(0, 1)
            where = torch.cat([where, own], 1)
            best, order = best.sort(dim=1, descending=True, stable=True)
            best, order = best[:, :k], order[:, :k]
            where = where.gather(1, order[..., None].expand(-1, -1, 3))
        if progress:
            progress(done, len(images))
    if not best.shape[1]:
        raise ValueError("no image of the collection can be read, so no patch is found")
    if chosen is None:
        variance = squares / patches - (total / patches).square()
        chosen = variance.argsort(descending=True, stable=True)[:most]
    own = where[chosen].numpy()
    rows, positions = own[..., 0].astype(np.int64), own[..., 1].astype(np.int64)
    return Strongest(chosen.numpy(), own[..., 2].astype(np.float32), rows, positions)


def _around(patches: Float[Tensor, "b n d"], grid: tuple[int, int]) -> Float[Tensor, "b n d"]:
    """The mean over each patch and its neighbours."""
    maps = patches.transpose(1, 2).unflatten(-1, grid)
    return F.avg_pool2d(maps, 3, 1, 1, count_include_pad=False).flatten(2).transpose(1, 2)


# ---------------------------------------------------------------- what in a patch raises a feature
class _Guided(torch.autograd.Function):
    """Passes back only gradients that are positive, where the input was."""

    @staticmethod
    def forward(ctx: Any, given: Tensor, made: Tensor) -> Tensor:
        ctx.save_for_backward(given)
        return made.clone()

    @staticmethod
    def backward(ctx: Any, received: Tensor) -> tuple[Tensor, None]:  # pyright: ignore
        (given,) = ctx.saved_tensors
        return received.clamp(min=0) * (given > 0), None


@contextmanager
def guided(network: nn.Module) -> Iterator[None]:
    """Within, ReLUs pass back only what is positive both ways [Springenberg 2014, section 3.4].

    A ReLU6 does so where it is saturated, too: the patches shown are those in which features are.
    """

    def replaced(module: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> Tensor:
        return _Guided.apply(given[0], made)  # type: ignore[no-any-return]

    relus = [module for module in network.modules() if isinstance(module, RELUS)]
    in_place = [module.inplace for module in relus]
    handles = [module.register_forward_hook(replaced) for module in relus]
    for module in relus:
        module.inplace = False  # the input is needed afterwards
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module, before in zip(relus, in_place, strict=True):
            module.inplace = before


def is_relu(network: nn.Module) -> bool:
    """Are all activations of the network ReLUs, as far as they are modules?"""
    others = ("GELU", "SiLU", "Hardswish", "Mish", "Swish", "Softplus", "ELU", "Sigmoid", "QuickGELU")
    kinds = {type(module).__name__ for module in network.modules()}
    return any(isinstance(m, RELUS) for m in network.modules()) and not any(
        kind.startswith(others) for kind in kinds
    )


def gradient(
    network: Backbone,
    pixels: Float[Tensor, "b c h w"],
    features: Int[np.ndarray, "b"],
    positions: Int[np.ndarray, "b"],
) -> Float[Tensor, "b c h w"]:
    """The gradient of one feature of one patch of each image with respect to its pixels."""
    with torch.enable_grad():
        pixels = pixels.detach().clone().requires_grad_()
        rows = torch.arange(len(pixels))
        found = network(pixels).patches[rows, torch.as_tensor(positions), torch.as_tensor(features)]
        return torch.autograd.grad(found.float().sum(), pixels)[0].detach()


def view(
    network: Backbone,
    pixels: Float[Tensor, "b c h w"],
    features: Int[np.ndarray, "b"],
    positions: Int[np.ndarray, "b"],
) -> Float[Tensor, "b c h w"]:
    """Guided gradients on networks of ReLUs; gradient times input, 0 being the mean colour, on others."""
    if is_relu(network):
        with guided(network):
            return gradient(network, pixels, features, positions)
    return gradient(network, pixels, features, positions) * pixels


@torch.no_grad()
def loudest(
    network: Backbone, pixels: Float[Tensor, "b c h w"], positions: Int[np.ndarray, "b"]
) -> Int[np.ndarray, "b"]:
    """The largest feature of a patch of each image: with random weights, most are 0, without gradient."""
    rows = torch.arange(len(pixels))
    return network(pixels).patches[rows, torch.as_tensor(positions)].argmax(-1).cpu().numpy()


def likeness(a: Float[Tensor, "b c h w"], b: Float[Tensor, "b c h w"]) -> Float[np.ndarray, "b"]:
    """Spearman correlation of pairs of views, absolute, summed over channels; NaN where one is empty."""
    x, y = (each.float().abs().sum(1).flatten(1).cpu().numpy() for each in (a, b))
    empty = (np.ptp(x, axis=1) == 0) | (np.ptp(y, axis=1) == 0)
    return np.where(empty, np.nan, spearman(x, y))


def box(
    weights: Float[np.ndarray, "h w"], centre: tuple[float, float], least: int, share: float = MASS
) -> tuple[int, int, int, int]:
    """Top, left, bottom, right of the smallest square around a place that holds a share of the weights.

    It is at least `least` pixels wide, moved to lie within the image where that is larger.
    """
    height, width = weights.shape
    sums = np.pad(weights.astype(np.float64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    side, most = min(least, height, width), min(height, width)
    while True:
        top = int(np.clip(round(centre[0] - side / 2), 0, height - side))
        left = int(np.clip(round(centre[1] - side / 2), 0, width - side))
        bottom, right = top + side, left + side
        inside = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
        if side == most or inside >= share * sums[-1, -1]:
            return top, left, bottom, right
        side = min(most, side + max(1, least // 4))


# ---------------------------------------------------------------- the kind
def lacks(subject: Subject) -> str | None:
    """Why there are no patches."""
    if subject.gallery is None:
        return "a feature's patches are looked for in a collection: give one (--gallery IMAGES)"
    return None


def explain(subject: Subject) -> Explanation:
    """The strongest patches of each feature and, below, what in them raises it.

    Option "features": their numbers; without it those that vary most over the collection.
    """
    gallery, network = subject.gallery, subject.encoder
    assert gallery is not None, "the caller has asked `lacks`"
    preprocess = subject.model.preprocess

    def progress(done: int, total: int) -> None:
        subject.progress("patches of the collection", done, total)

    found = strongest(network, gallery, preprocess, subject.options.get("features"), progress=progress)
    features = np.repeat(found.features, found.values.shape[1])
    rows, positions, values = found.images.ravel(), found.positions.ravel(), found.values.ravel()
    first = next(network.parameters())
    cells: list[tuple[Picture, Picture]] = []
    alike: list[np.ndarray] = []
    untrained = subject.model.untrained(subject.seed)
    random_network = untrained.encoder.to(first.device, first.dtype)
    step = batch_size(preprocess, first.device)
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        pixels = load_batch(with_channels(gallery, preprocess.channels), rows[part], preprocess)[0]
        pixels = pixels.to(first.device, first.dtype)
        views = view(network, pixels, features[part], positions[part])
        others = loudest(random_network, pixels, positions[part])
        alike.append(likeness(views, view(random_network, pixels, others, positions[part])))
        cells += _cells(subject.model, pixels, views, positions[part], values[part], gallery, rows[part])
        subject.progress("views of patches", min(start + step, len(rows)), len(rows))
    lines: list[tuple[Picture | None, ...]] = []
    for feature in found.features.tolist():
        own = [cell for cell, number in zip(cells, features.tolist()) if number == feature]
        lines.append(tuple(patch for patch, _ in own))
        lines.append(tuple(seen for _, seen in own))
    what = "guided gradients" if is_relu(network) else "gradient times input"
    caption = (
        f"For each of {len(found.features)} features ({', '.join(map(str, found.features.tolist()))}), the "
        f"patches of the collection in which it is largest, one an image, with its value; below, {what}: "
        "what in the patch raises it, grey where nothing does. A crop is the smallest square around it "
        "that holds half of that."
    )
    return Explanation(
        "Strongest patches",
        caption,
        (Rows(("strongest", *[""] * (found.values.shape[1] - 1)), tuple(lines)),),
        {"patches": found.images, "patches.positions": found.positions, "patches.values": found.values},
        (randomisation(what, np.concatenate(alike)),),
    )


def randomisation(what: str, alike: Float[np.ndarray, "n"]) -> str:
    """Does the view depend on the weights [Adebayo 2018, section 3]? A sentence; alike: from `likeness`."""
    known = alike[np.isfinite(alike)]
    of = f"strongest patches: the view ({what})"
    if len(known) < len(alike) / 2:
        return f"{of} cannot be checked against random weights, which pass back no gradient for most patches"
    mean = float(known.mean())
    verdict = f"rank correlation {mean:.2f} with the same view of random weights, where below {LIMIT} passes"
    if mean < LIMIT:
        return f"{of} passes the randomisation check: {verdict}"
    return (
        f"{of} does not pass the randomisation check: {verdict}; read it as the patch's edges, not as what "
        "the feature has learned"
    )


def _cells(
    model: Model,
    pixels: Tensor,
    views: Tensor,
    positions: Int[np.ndarray, "b"],
    values: Float[np.ndarray, "b"],
    gallery: Images,
    rows: Int[np.ndarray, "b"],
) -> list[tuple[Picture, Picture]]:
    """Each patch and its view, cut out."""
    images, colours = shown(pixels, model.preprocess), views.float().cpu().permute(0, 2, 3, 1).numpy()
    height, width = images.shape[1:3]
    grid = model.encoder.grid(height, width)
    made = []
    for image, colour, position, value, row in zip(images, colours, positions, values, rows):
        row_at, column_at = divmod(int(position), grid[1])
        centre = ((row_at + 0.5) * height / grid[0], (column_at + 0.5) * width / grid[1])
        top, left, bottom, right = box(np.abs(colour).sum(-1), centre, max(8, model.encoder.patch))
        low, high = limits(image)
        patch = ((image[top:bottom, left:right, :3] - low) / (high - low)).clip(0, 1)
        cut = colour[top:bottom, left:right, :3]
        scale = max(float(np.quantile(np.abs(cut), 0.995)), 1e-30)
        seen = Picture((0.5 + 0.5 * cut / scale).clip(0, 1))
        made.append((Picture(patch, f"{value:.3g}", path=gallery.path(int(row))), seen))
    return made


KIND = Kind(name="patches", explain=explain, lacks=lacks)
