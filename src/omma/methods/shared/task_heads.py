"""Heads of the tasks of physical interaction, and their losses [Pinto 2016, section 3]."""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor, nn

from omma.core import collectives
from omma.core.protocols import Features
from omma.losses import interaction

_IDENTITY = 128  # numbers of what is compared between pictures of an object


def known(task: str, values: Num[np.ndarray, "n d"]) -> Bool[np.ndarray, "n"]:
    """Which rows have the numbers of a task, or the name of an object."""
    return np.asarray(values[:, 0] >= 0 if task == "identity" else np.isfinite(values).all(axis=1))


def check(tasks: Mapping[str, Num[np.ndarray, "n d"]]) -> None:
    """Raise ValueError for a task that no row teaches, or that is not of its kind of numbers.

    tasks: values of the images to learn from; of tasks that compare two pictures, of those that come first.
    """
    for task, values in tasks.items():
        columns = {"grasp": 2, "identity": 1}.get(task, values.shape[1])
        if values.shape[1] != columns:
            raise ValueError(f"interaction: {task} has {values.shape[1]} columns, and takes {columns}")
        if not known(task, values).any():
            raise ValueError(
                f"interaction: no first picture of two has values of {task}: write them in the row of the "
                f"picture before, or leave the task out with --method.{task} none"
            )
        if task == "grasp" and ((success := values[known(task, values), 1]) != success.clip(0, 1)).any():
            wrong = success[success != success.clip(0, 1)][0]
            raise ValueError(f"interaction: success of a grasp is 1 or 0, and a row says {wrong:g}")


class Heads(nn.Module):
    """A small network for each task, which reads the pooled feature and a few numbers of each patch.

    fields: of each task, the numbers of all training images [n, d], NaN where they are missing; those of push
    and poke are predicted in units of their deviation.
    """

    def __init__(
        self, dim: int, patches: int, cells: int, hidden: int, angles: int, fields: Mapping[str, np.ndarray]
    ) -> None:
        super().__init__()
        self.reduce = nn.Linear(dim, cells)
        width = dim + patches * cells
        self.heads = nn.ModuleDict()
        for task, values in fields.items():
            outputs = {"grasp": angles, "identity": _IDENTITY}.get(task, int(values.shape[1]))
            first = nn.Linear(2 * width if task == "push" else width, hidden)
            self.heads[task] = nn.Sequential(first, nn.ReLU(), nn.Linear(hidden, outputs))
            if task in ("push", "poke"):
                mean, deviation = np.nanmean(values, axis=0), np.nanstd(values, axis=0)
                deviation = np.where(deviation > 1e-12, deviation, 1.0)
                self.register_buffer(f"{task}_mean", torch.from_numpy(mean).float())
                self.register_buffer(f"{task}_deviation", torch.from_numpy(deviation).float())

    def forward(self, encoded: Features, frames: int) -> dict[str, Tensor]:
        """What each task's head says of samples of so many frames, in rows of all frames in turn.

        push: [b, d], standardised. poke: [b frames, d], too. grasp: logits [b frames, angles]. identity:
        [b, frames, 128].
        """
        read = torch.cat([encoded.pooled, self.reduce(encoded.patches).flatten(1)], -1)
        samples = read.unflatten(0, (-1, frames))
        inputs = {"push": samples.flatten(1), "identity": samples}
        return {task: head(inputs.get(task, read)) for task, head in self.heads.items()}

    def numbers(self, task: str, standardised: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """Predictions of push or poke in the units of the table."""
        return standardised * self.get_buffer(f"{task}_deviation") + self.get_buffer(f"{task}_mean")

    def loss(
        self, task: str, y: Tensor, target: Float[Tensor, "r d"], has: Bool[Tensor, "r"], margin: float
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Of the rows that have the task's numbers: loss, and its value or the share of wrong grasps."""
        count = collectives.mean(has.sum().float())
        if task == "grasp":
            return interaction.tried(y, target[:, 0], target[:, 1], has, count)
        if task == "identity":
            code = torch.where(has, target[:, 0].long(), -1)
            everyone = collectives.gather(y[:, 1]), collectives.gather(code)
            loss = interaction.identity(y[:, 0], y[:, 1], code, everyone, margin, count)
        else:
            mean, deviation = self.get_buffer(f"{task}_mean"), self.get_buffer(f"{task}_deviation")
            loss = interaction.regression(y, (target - mean) / deviation, has, count)
        return loss, loss.detach()
