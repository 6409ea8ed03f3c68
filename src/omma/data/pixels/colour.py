"""In-place colour operations on a batch in [0, 1], with one factor per image, each equal to torchvision's.

They take as few passes over memory as possible and avoid `where` and `remainder`, which PyTorch runs ten
times slower than arithmetic on a CPU. Nothing is read back from the device.
"""

import torch
from jaxtyping import Float
from torch import Tensor

# ITU-R 601-2 luma, rounded as in torchvision's `rgb_to_grayscale`
LUMA = (0.2989, 0.587, 0.114)

Images = Float[Tensor, "b c h w"]
Factors = Float[Tensor, "b"]


def _each(factor: Factors) -> Float[Tensor, "b 1 1 1"]:
    return factor[:, None, None, None]


def luma(images: Images) -> Float[Tensor, "b 1 h w"]:
    """Perceived brightness. RGB."""
    red, green, blue = images.split(1, dim=1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def brightness_(images: Images, factor: Factors) -> Images:
    """x f, clipped; f >= 0. Any number of channels."""
    return images.mul_(_each(factor)).clamp_(max=1)


def contrast_(images: Images, factor: Factors) -> Images:
    """f x + (1 - f) mean, clipped. The mean is that of the luma for RGB, of all channels otherwise."""
    mean = images.mean((2, 3))
    mean = mean @ mean.new_tensor(LUMA) if images.shape[1] == 3 else mean.mean(1)
    return images.mul_(_each(factor)).add_(_each((1 - factor) * mean)).clamp_(0, 1)


def saturation_(images: Images, factor: Factors) -> Images:
    """f x + (1 - f) luma(x), clipped. RGB."""
    return torch.lerp(luma(images), images, _each(factor), out=images).clamp_(0, 1)


def hue_(images: Images, shift: Factors) -> Images:
    """Rotate the hue by `shift` turns in [-.5, .5], at constant HSV saturation and value. RGB.

    With m the least and v the largest channel, chroma c = v - m, and signed hue H in [-3, 3] sixths of a turn
    from red, the HSV hexagon gives, without case distinctions,
        c |H| = v - 2 m + g + b - r,    sign H = sign(g - b),
    and back, after the rotation, with clip to [0, 1],
        r = m + c clip(2 - |H|),  g = m + c (clip(H) + clip(-2 - H)),  b = m + c (clip(-H) + clip(H - 2)).
    """
    red, green, blue = images.unbind(1)
    low = torch.minimum(red, green)
    chroma = torch.maximum(red, green)
    torch.minimum(low, blue, out=low)
    torch.maximum(chroma, blue, out=chroma)
    hue = (green + blue).sub_(red).add_(chroma).sub_(low, alpha=2)
    chroma.sub_(low)
    scratch = torch.mul(chroma, 6).clamp_(min=1e-12)  # grey pixels: 0 / tiny = 0, and chroma 0 hides any hue
    hue.div_(scratch)  # |H| / 6: turns
    torch.sub(green, blue, out=scratch)
    hue.copysign_(scratch).add_(shift[:, None, None])
    hue.sub_(torch.round(hue, out=scratch)).mul_(6)  # back to [-3, 3]

    torch.abs(hue, out=scratch)
    torch.addcmul(low, chroma, torch.sub(2, scratch, out=scratch).clamp_(0, 1), out=red)
    rise = torch.clamp(hue, 0, 1)
    torch.sub(-2, hue, out=scratch)
    torch.addcmul(low, chroma, scratch.clamp_(0, 1).add_(rise), out=green)
    torch.clamp(hue, -1, 0, out=rise)
    torch.addcmul(low, chroma, hue.sub_(2).clamp_(0, 1).sub_(rise), out=blue)
    return images


def grey_(images: Images) -> Images:
    """Luma in all three channels. RGB."""
    return images.copy_(luma(images).expand_as(images))


def solarise_(images: Images) -> Images:
    """Invert values of at least .5: min(x, 1 - x)."""
    return torch.minimum(images, 1 - images, out=images)
