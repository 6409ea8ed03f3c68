"""The demo's images, made from scikit-learn's own data: handwritten digits on crops of photographs."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits, load_sample_images

TEST_ORIGINALS = 0.2  # share of the 1,797 handwritten digits that only test images show
TEXTURES = 16  # distinct textures, shared by all images
TEXTURE = 0.3  # of the textures' contrast; at more, backgrounds alone would distinguish the images
CONTRAST = 70.0  # minimal difference in brightness (of 255) between a digit's ink and its background
CHUNK = 2_000  # images made at a time


class Digits(NamedTuple):
    """uint8 images [n, size, size, 3] with labels 0 .. 9, for training and for testing.

    Boxes [n, 4] are the top, left, bottom and right of each digit's ink, in pixels.
    """

    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray
    train_boxes: np.ndarray
    test_boxes: np.ndarray


class TextureSource(NamedTuple):
    """Squares of `side` pixels in a photograph [h, w, 3], with corners [k, 2], to use as textures."""

    photograph: torch.Tensor
    side: int
    corners: np.ndarray


def make_digits(n_train: int = 10_000, n_test: int = 2_000, size: int = 32, seed: int = 0) -> Digits:
    """Digits of random position, size, slant and colour on textures cut from two photographs.

    Nearest neighbours by raw pixels share a background rather than a digit, so shape must be learned. Train
    and test images show different handwritten digits on the same textures. Equal arguments give equal images.
    """
    if size < 16:
        raise ValueError(f"size={size}: too small to paste a digit; give at least 16")
    originals, target = load_digits(return_X_y=True)
    inks = torch.from_numpy(originals.astype(np.float32) / 16).reshape(-1, 8, 8)  # ink is 1
    labels = target.astype(np.int64)
    photographs = [torch.from_numpy(photo.copy()) for photo in load_sample_images().images]
    sources = [_texture_source(photo, size * factor) for photo in photographs for factor in (2, 3, 4)]
    tiles = _tiles(sources, 2 * size)
    order = np.random.default_rng(seed).permutation(len(inks))
    cut = round(TEST_ORIGINALS * len(inks))
    columns, boxes = [], []
    for part, (n, pool) in enumerate(((n_train, order[cut:]), (n_test, order[:cut]))):
        rng = np.random.default_rng((seed, part))
        # use every original equally often, and so every digit
        chosen = rng.permutation(np.resize(rng.permutation(pool), n))
        chunks = [_paste(inks[rows], tiles, size, rng) for rows in np.split(chosen, range(CHUNK, n, CHUNK))]
        columns += [np.concatenate([images for images, _ in chunks]), labels[chosen]]
        boxes.append(np.concatenate([each for _, each in chunks]))
    return Digits(*columns, *boxes)


def _paste(
    inks: torch.Tensor, tiles: torch.Tensor, size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The images, and the boxes around their ink."""
    n = len(inks)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.uniform(low, high, shape or (n,)).astype(np.float32))

    ground = _textures(n, tiles, size, rng)  # [n, 3, size, size], 0 .. 255
    # the digit covers 40 to 75 % of the side, is slightly rotated and sheared, and stays inside
    share = uniform(0.4, 0.75)
    room = 1 - share
    x, y = room * uniform(-1, 1), room * uniform(-1, 1)
    angle, slant = uniform(-0.25, 0.25), uniform(-0.2, 0.2)
    cos, sin = torch.cos(angle) / share, torch.sin(angle) / share
    turn = torch.stack(
        [torch.stack([cos, sin + slant * cos], -1), torch.stack([-sin, cos - slant * sin], -1)], -2
    )
    shift = -(turn @ torch.stack([x, y], -1)[..., None])
    grid = F.affine_grid(torch.cat([turn, shift], -1), [n, 1, size, size], align_corners=False)
    smooth = F.interpolate(inks[:, None], scale_factor=4, mode="bicubic").clamp(0, 1)  # strokes, not squares
    ink = F.grid_sample(smooth, grid, mode="bilinear", align_corners=False)
    ink = ((ink - 0.25) / 0.4).clamp(0, 1)

    # colours by rejection: their brightness differs by at least CONTRAST from the background's under the ink
    weights = torch.tensor([0.299, 0.587, 0.114])[None, :, None, None]
    brightness = (ground * weights * ink[:, :1]).sum((1, 2, 3)) / ink.sum((1, 2, 3)).clamp(min=1)
    tries = uniform(0, 255, n, 16, 3)
    difference = ((tries * weights.flatten()).sum(-1) - brightness[:, None]).abs()
    first = torch.argmax((difference >= CONTRAST).int(), 1)
    chosen = torch.where(difference.amax(1) >= CONTRAST, first, difference.argmax(1))
    colour = tries[torch.arange(n), chosen][:, :, None, None]
    image = ground * (1 - ink) + colour * ink
    pixels = image.round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()
    return pixels, _boxes(ink[:, 0] >= 0.5)


def _boxes(inked: torch.Tensor) -> np.ndarray:
    """Top, left, bottom, right around the True of masks [n, size, size]."""
    size, edges = inked.shape[-1], []
    for along in (inked.any(2), inked.any(1)):  # rows, columns
        first = along.int().argmax(1)
        edges.append((first, size - along.flip(1).int().argmax(1)))
    (top, bottom), (left, right) = edges
    return torch.stack([top, left, bottom, right], 1).numpy()


def _tiles(sources: list[TextureSource], size: int) -> torch.Tensor:
    """The textures [TEXTURES, 3, size, size] that all images share, with permuted colour channels.

    If each image had its own texture, the background alone would distinguish the images.
    """
    rng = np.random.default_rng(0)
    tiles = []
    for i in range(TEXTURES):
        photograph, side, corners = sources[i % len(sources)]
        top, left = corners[rng.integers(len(corners))]
        cut = photograph[top : top + side, left : left + side].permute(2, 0, 1).float()
        tiles.append(F.adaptive_avg_pool2d(cut[rng.permutation(3)], size))
    return torch.stack(tiles)


def _textures(n: int, tiles: torch.Tensor, size: int, rng: np.random.Generator) -> torch.Tensor:
    """Random crops [n, 3, size, size] of the tiles, with less contrast, some flipped, brightness scaled."""
    which = torch.from_numpy(rng.integers(len(tiles), size=n))[:, None, None]
    room = tiles.shape[-1] - size + 1
    top, left = (torch.from_numpy(rng.integers(room, size=(n, 1, 1))) for _ in range(2))
    rows, columns = top + torch.arange(size)[:, None], left + torch.arange(size)
    crops = tiles.permute(0, 2, 3, 1)[which, rows, columns].permute(0, 3, 1, 2)
    flip = torch.from_numpy(rng.random(n) < 0.5)[:, None, None, None]
    crops = torch.where(flip, crops.flip(-1), crops)
    mean = crops.mean((2, 3), keepdim=True)
    crops = mean + TEXTURE * (crops - mean)
    gain = torch.from_numpy(rng.uniform(0.5, 1.1, (n, 1, 1, 1)).astype(np.float32))
    return (crops * gain).clamp(0, 255)


def _texture_source(photograph: torch.Tensor, side: int) -> TextureSource:
    """The half of all squares with the most contrast; on flat sky digits would be too easy to see."""
    grey = photograph.float().mean(-1)[None, None]
    mean, square = (F.avg_pool2d(x, side, stride=8)[0, 0] for x in (grey, grey**2))
    variance = square - mean**2
    return TextureSource(photograph, side, 8 * torch.nonzero(variance >= variance.median()).numpy())
