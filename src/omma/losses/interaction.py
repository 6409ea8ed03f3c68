"""Losses of physical interactions, of which each row has some and lacks others [Pinto 2016]."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


def regression(
    predicted: Float[Tensor, "b d"],
    target: Float[Tensor, "b d"],
    has: Bool[Tensor, "b"],
    count: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """1/count sum_(i: has_i) mean_k (predicted_ik - target_ik)^2; targets of other rows may be NaN.

    count: the number of rows that have it, or its mean over processes. 0 where there is none.
    """
    rows = (predicted.float() - torch.where(has[:, None], target.float(), 0.0)).square().mean(1)
    return _mean(rows, has, count)


def tried(
    logits: Float[Tensor, "b k"],
    angle: Float[Tensor, "b"],
    success: Float[Tensor, "b"],
    has: Bool[Tensor, "b"],
    count: Float[Tensor, ""],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Cross-entropy of success at the angle that was tried, one of k in 180 degrees; and its errors' share.

    A gripper turned by 180 degrees is the same, so angles are taken modulo 180; other outputs get no gradient
    [Pinto 2016, section 3.1]. A logit is that of success; the paper's two outputs differ by it.
    """
    k = logits.shape[1]
    place = bins(torch.where(has, angle, 0.0), k)
    logit = logits.float().gather(1, place[:, None])[:, 0]
    done = torch.where(has, success.float(), 0.0)
    rows = F.binary_cross_entropy_with_logits(logit, done, reduction="none")
    wrong = ((logit.detach() > 0) != (done > 0.5)).float()
    return _mean(rows, has, count), _mean(wrong, has, count)


def bins(angle: Float[Tensor, "b"], k: int) -> Int[Tensor, "b"]:
    """Which of k equal parts of 180 degrees an angle lies in, modulo 180."""
    return (angle.remainder(180.0) * (k / 180)).long().clamp(max=k - 1)


def identity(
    first: Float[Tensor, "b d"],
    second: Float[Tensor, "b d"],
    code: Int[Tensor, "b"],
    everyone: tuple[Float[Tensor, "n d"], Int[Tensor, "n"]],
    margin: float,
    count: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """1 - cos of two pictures of an object, plus max(0, cos - margin) to other objects' (a mean of them).

    code: the object, -1: not known, and left out. everyone: second pictures and objects of all processes.
    count: as in `regression`.
    """
    first, second, others = (F.normalize(x.float(), dim=-1) for x in (first, second, everyone[0]))
    unlike = (code[:, None] != everyone[1]) & (everyone[1] >= 0)
    pushed = (first @ others.T - margin).clamp(min=0) * unlike
    rows = 1 - (first * second).sum(1) + pushed.sum(1) / unlike.sum(1).clamp(min=1)
    return _mean(rows, code >= 0, count)


def _mean(rows: Float[Tensor, "b"], has: Bool[Tensor, "b"], count: Float[Tensor, ""]) -> Float[Tensor, ""]:
    return torch.where(has, rows, 0.0).sum() / count.clamp(min=1e-6)
