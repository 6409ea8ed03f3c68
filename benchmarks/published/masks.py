"""Statistics of omma's masks and the published code's, which use different random generators."""

from collections.abc import Callable
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch
import torch.distributed
from published.references import References

from omma.core.protocols import Key
from omma.methods.shared.masking import blockwise, random_units, view_masks

DRAWS = 3000


def statistics_of(masks: np.ndarray) -> list[float]:
    """Mean and standard deviation of the masked count, and mean number of masked runs in rows of the grid."""
    counts = masks.sum((1, 2))
    starts = (np.diff(np.pad(masks, ((0, 0), (0, 0), (1, 0))).astype(int), axis=2) == 1).sum((1, 2))
    return [counts.mean(), counts.std(), starts.mean()]


def ours_blockwise(counts: np.ndarray, least: float) -> np.ndarray:
    key = Key(0, np.zeros(len(counts)), np.arange(len(counts)))
    return blockwise(key, 0x400, (14, 14), counts, least).view(-1, 14, 14).numpy()


def dinov2_masks(references: References) -> tuple[list[float], list[float]]:
    official = references.load("facebookresearch/dinov2", "dinov2.data.masking")
    generator = official.MaskingGenerator((14, 14), max_num_patches=0.5 * 196)
    counts = np.linspace(0.1, 0.5, DRAWS) * 196
    theirs = np.stack([generator(int(count)) for count in counts])
    return statistics_of(ours_blockwise(np.floor(counts), 4)), statistics_of(theirs)


def beit_masks(references: References) -> tuple[list[float], list[float]]:
    official = references.load("microsoft/unilm", "masking_generator", inside="beit")
    generator = official.MaskingGenerator((14, 14), num_masking_patches=75, min_num_patches=16)
    theirs = np.stack([generator() for _ in range(DRAWS)]).astype(bool)
    return statistics_of(ours_blockwise(np.full(DRAWS, 75), 16)), statistics_of(theirs)


def ibot_masks(references: References) -> tuple[list[float], list[float]]:
    official = references.load("bytedance/ibot", "loader")
    # of an image folder it needs the images only, here two views each
    views = ([torch.zeros(3, 14, 14)] * 2,)
    folder = official.ImageFolder
    with (
        mock.patch.object(folder, "__init__", return_value=None),
        mock.patch.object(folder, "__getitem__", return_value=views),
    ):
        dataset = official.ImageFolderMask(
            patch_size=1, pred_ratio=[0.0, 0.3], pred_ratio_var=[0.0, 0.2], pred_aspect_ratio=(0.3, 1 / 0.3)
        )
        theirs = np.concatenate([np.stack(dataset[i][-1]) for i in range(DRAWS // 2)])
    key = Key(0, np.zeros(DRAWS // 2), np.arange(DRAWS // 2))
    ours = view_masks(key, 2, (14, 14), 0.5, (0.1, 0.5), 16).view(-1, 14, 14).numpy()
    return statistics_of(ours), statistics_of(theirs)


def simmim_masks(references: References) -> tuple[list[float], list[float]]:
    official = references.load("microsoft/SimMIM", "data.data_simmim")
    generator = official.MaskGenerator(192, 32, 4, 0.6)
    theirs = np.stack([generator() for _ in range(DRAWS)]).astype(bool)
    key = Key(0, np.zeros(DRAWS), np.arange(DRAWS))
    ours = random_units(key, 0x400, (48, 48), 8, 0.6).view(-1, 48, 48).numpy()
    return statistics_of(ours), statistics_of(theirs)


class Masks(NamedTuple):
    name: str
    what: str
    source: str
    part: str
    compare: Callable[[References], tuple[list[float], list[float]]]


MASKS = [
    Masks(
        "beit-masks", "BEiT's blocks, 75 of 14x14", "microsoft/unilm", "beit/MaskingGenerator", beit_masks
    ),
    Masks(
        "dinov2-masks", "DINOv2's blocks, 10 to 50% of 14x14", "facebookresearch/dinov2",
        "MaskingGenerator", dinov2_masks,
    ),
    Masks(
        "ibot-masks", "iBOT's blocks, in half of the views", "bytedance/ibot", "ImageFolderMask", ibot_masks
    ),
    Masks(
        "simmim-masks", "SimMIM's units, 8x8 of 48x48", "microsoft/SimMIM", "MaskGenerator", simmim_masks
    ),
]  # fmt: skip
