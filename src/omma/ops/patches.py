"""Images to patches and back, and the patch targets of masked image modelling."""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor


def patchify(images: Float[Tensor, "b c h w"], patch: int) -> Float[Tensor, "b n p"]:
    """Cut images into patches of `patch` x `patch` pixels, row by row; p = c * patch * patch.

    Values within a patch are ordered as in the weights of a convolution: channel, row, column.
    """
    if images.shape[-2] % patch or images.shape[-1] % patch:
        raise ValueError(
            f"an image of {images.shape[-2]}x{images.shape[-1]} pixels is no multiple of the patch size "
            f"{patch}: choose another image size or patch"
        )
    return rearrange(images, "b c (h p) (w q) -> b (h w) (c p q)", p=patch, q=patch)


def overlapping(images: Float[Tensor, "b c h w"], patch: int, stride: int) -> Float[Tensor, "b n p"]:
    """Patches as of `patchify`, `stride` pixels apart, as many as fit; a smaller image is padded to one."""
    down, right = max(patch - images.shape[-2], 0), max(patch - images.shape[-1], 0)
    windows = F.pad(images, (0, right, 0, down)) if down or right else images
    windows = windows.unfold(2, patch, stride).unfold(3, patch, stride)
    return rearrange(windows, "b c h w p q -> b (h w) (c p q)")


def padded(images: Float[Tensor, "b c h w"], patch: int) -> Float[Tensor, "b c H W"]:
    """Zeros at the right and bottom, up to the next multiple of `patch`."""
    down, right = -images.shape[-2] % patch, -images.shape[-1] % patch
    return F.pad(images, (0, right, 0, down)) if down or right else images


def resample_kernel(kernel: Float[Tensor, "d c p p"], new: int) -> Float[Tensor, "d c q q"]:
    """A patch embedding's kernel for patches of `new` pixels: B^+T w [Beyer 2022, arXiv 2212.08013, eq. 4].

    B resizes a patch bilinearly from p to `new` pixels, B^+ is its pseudo-inverse. For larger patches, the
    embedding of a resized patch with the new kernel equals that of the patch with the old one.
    """
    p = kernel.shape[-1]
    if p == new:
        return kernel
    basis = torch.eye(p * p, dtype=torch.float64).view(p * p, 1, p, p)
    resize = F.interpolate(basis, size=(new, new), mode="bilinear", antialias=True).flatten(1)  # B^T
    resized = kernel.double().flatten(2) @ torch.linalg.pinv(resize.T).to(kernel.device)
    return resized.view(*kernel.shape[:2], new, new).to(kernel.dtype)


def unpatchify(
    patches: Float[Tensor, "b n p"], patch: int, grid: tuple[int, int]
) -> Float[Tensor, "b c h w"]:
    """The inverse of `patchify` for `grid` rows and columns of patches."""
    return rearrange(patches, "b (h w) (c p q) -> b c (h p) (w q)", p=patch, q=patch, h=grid[0], w=grid[1])


def take(tokens: Float[Tensor, "b n d"], index: Int[Tensor, "b m"]) -> Float[Tensor, "b m d"]:
    """The tokens at the indices of each row."""
    return tokens.gather(1, index[:, :, None].expand(-1, -1, tokens.shape[2]))


def _statistics(patches: Float[Tensor, "b n p"]) -> tuple[Float[Tensor, "b n 1"], Float[Tensor, "b n 1"]]:
    """Mean and (unbiased) standard deviation of each patch, as in the code behind the paper's figures."""
    return patches.mean(-1, keepdim=True), torch.sqrt(patches.var(-1, keepdim=True) + 1e-6)


def normalised(patches: Float[Tensor, "b n p"]) -> Float[Tensor, "b n p"]:
    """Each patch minus its mean, divided by its deviation [He 2021, "normalised pixels"]."""
    mean, deviation = _statistics(patches)
    return (patches - mean) / deviation


def restored(predicted: Float[Tensor, "b n p"], patches: Float[Tensor, "b n p"]) -> Float[Tensor, "b n p"]:
    """Predictions of `normalised` patches, with the mean and deviation of the true ones."""
    mean, deviation = _statistics(patches)
    return predicted * deviation + mean
