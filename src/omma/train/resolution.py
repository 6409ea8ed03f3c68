"""Smaller views early in a run, where steps then cost less [Tan 2021, arXiv 2104.00298, section 4.2]."""

from torch import Tensor, nn

from omma.core.protocols import Batch


def side(size: int, scale: float, patch: int) -> int:
    """Pixels along a side of views of `size` at this scale: whole patches, at least two, at most `size`."""
    return min(size, max(2, round(scale * size / patch)) * patch)


def scaled(batch: Batch, scale: float, patch: int) -> Batch:
    """The batch with views of this scale, resized with an antialiased bilinear filter."""
    return batch._replace(
        views=tuple(_resized(views, side(views.shape[-1], scale, patch)) for views in batch.views)
    )


def _resized(views: Tensor, size: int) -> Tensor:
    if size == views.shape[-1]:
        return views
    flat = views.flatten(0, 1)
    small = nn.functional.interpolate(flat, size=(size, size), mode="bilinear", antialias=True)
    return small.unflatten(0, views.shape[:2])
