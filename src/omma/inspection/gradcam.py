"""Grad-CAM: the last feature map, weighted by its channels' gradients [Selvaraju 2016, 1610.02391]."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from omma.backbones import external
from omma.inspection.kinds import Explanation, Heat, Kind, Rows, Subject


def weighted(activations: Float[Tensor, "b n d"], gradient: Float[Tensor, "b n d"]) -> Float[Tensor, "b n"]:
    """ReLU(sum_k alpha_k A_k) with alpha_k the mean gradient of channel k [Selvaraju 2016, eq. 1 and 2]."""
    return (activations * gradient.mean(1, keepdim=True)).sum(-1).relu()


def gradcam(subject: Subject) -> Float[np.ndarray, "n gh gw"]:
    """Grad-CAM on the last patches that the pooled feature is made of.

    Those are `Features.patches`, a convolutional network's last feature map; where a class token is pooled,
    which they do not reach, the tokens that the last block receives.
    """
    parts = []
    for start in range(0, len(subject.pixels), subject.batch):
        rows = range(start, min(start + subject.batch, len(subject.pixels)))
        parts.append(_some(subject, subject.pixels[start : rows.stop], list(rows)))
    return torch.cat(parts).numpy()


def _some(subject: Subject, pixels: Tensor, rows: list[int]) -> Float[Tensor, "b gh gw"]:
    encoder, which = subject.encoder, torch.tensor(rows, device=pixels.device)
    token, seen = encoder.pool == "token", []
    count = subject.grid[0] * subject.grid[1]

    def keep(block: Any, inputs: tuple[Any, ...]) -> None:
        seen.extend(x for x in inputs if isinstance(x, Tensor) and x.ndim == 3)

    hook = encoder.repeated()[-1].register_forward_pre_hook(keep) if token else None
    try:
        with torch.enable_grad():
            inputs = pixels.detach().clone().requires_grad_()
            if isinstance(encoder, external.Encoder):  # which pools the map itself, in its library's way
                tokens = encoder.tokenize(inputs)
                features = encoder.encode(tokens, subject.grid)
            else:
                features = encoder(inputs)
                tokens = next(x for x in seen if x.shape[1] >= count) if token else features.patches
            (gradient,) = torch.autograd.grad(subject.target.linear(features, which).sum(), tokens)
    finally:
        if hook is not None:
            hook.remove()
    own = slice(tokens.shape[1] - count, None)
    found = weighted(tokens[:, own].detach().float(), gradient[:, own].float())
    return found.unflatten(1, subject.grid).cpu()


def lacks(subject: Subject) -> str | None:
    """Why there is no map."""
    if subject.grid == (1, 1):
        return f"{subject.encoder.name} gives one vector for the whole image"
    if subject.encoder.pool == "token" and not subject.encoder.repeated():
        return f"{subject.encoder.name} pools a token in a way that omma does not see into"
    return None


def explain(subject: Subject) -> Explanation:
    """The map of each image."""
    found = gradcam(subject)
    rows = tuple((Heat(each, i),) for i, each in enumerate(found))
    where = (
        "the tokens that the last block receives"
        if subject.encoder.pool == "token"
        else "the last feature map"
    )
    what = (
        f"the {subject.target.unit}"
        if subject.target.own is None
        else "the feature's component along the image's own direction (the model has no classifier)"
    )
    caption = (
        f"The patches of {where}, weighted by the gradient of {what}: bright where they raise it. The map "
        f"has {found.shape[1]} x {found.shape[2]} cells and is drawn smoothly; its scale has no unit."
    )
    return Explanation("Grad-CAM", caption, (Rows(("Grad-CAM",), rows),), {"gradcam": found})


KIND = Kind(name="gradcam", explain=explain, lacks=lacks, one_map=gradcam, default=True)
