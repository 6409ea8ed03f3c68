"""dVAE: its terms and schedules, what is kept for BEiT, and pictures."""

import math

import numpy as np
import pytest
import torch
from waves import wave

from omma.backbones.vit import ViT
from omma.core.protocols import Batch, Clock, Context, Key, Preprocess
from omma.core.random import Stream
from omma.losses import pixels
from omma.methods import dvae
from omma.methods.shared import gumbel
from omma.methods.shared.pixel_decoding import decode
from omma.ops.patches import patchify

PREPROCESS = Preprocess(
    size=8, channels=3, low=(0.0,) * 3, high=(255.0,) * 3, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3)
)


def close(a, b, atol=2e-6):
    torch.testing.assert_close(torch.as_tensor(a).double(), torch.as_tensor(b).double(), rtol=1e-5, atol=atol)


def method(preprocess=PREPROCESS, **options) -> dvae.Method:
    torch.manual_seed(0)
    encoder = ViT("toy", depth=1, dim=8, heads=2, hidden=16, patch=4, image_size=8, pool="mean")
    settings = {"codes": 5, "decoder_depth": 1, "decoder_dim": 8, "decoder_heads": 2}
    return dvae.Method(
        encoder, dvae.Config(**(settings | options)), Context(image_size=8, preprocess=preprocess)
    )


def batch(b: int = 6) -> Batch:
    images = PREPROCESS.normalise((wave(b, 1, 3, 8, 8, step=0.31).float() + 1) / 2)
    return Batch((images,), Key(0, np.zeros(b, np.int64), np.arange(b)))


def written_out(net: dvae.Method, context: Batch, temperature: float, beta: float) -> torch.Tensor:
    """[Ramesh 2021, eq. 1 and appendix A.2], term by term, for laplace."""
    images, values = context.views[0][:, 0], 48
    logits = net.logits(net.encoder(images).patches).double()
    noise = gumbel.noise(context.key, Stream.METHOD, (4, 5)).double()
    y = ((logits + noise) / temperature).softmax(-1)
    out = decode(net.decoder, y.float(), (2, 2)).double()
    x = images * torch.tensor(PREPROCESS.std)[:, None, None] + torch.tensor(PREPROCESS.mean)[:, None, None]
    x = patchify(0.8 * x + 0.1, 4).double()
    mu, b = out[..., :values], out[..., values:].exp()
    density = (-(torch.log(x / (1 - x)) - mu).abs() / b).exp() / (2 * b * x * (1 - x))
    q = logits.softmax(-1)
    divergence = (q * (q * 5).log()).sum(-1)
    # summed over all values and all places, divided by the number of values of an image
    return ((-density.log()).sum((1, 2)) + beta * divergence.sum(1)).mean() / (4 * values)


@pytest.mark.parametrize(("progress", "temperature", "beta"), [(0.0, 1.0, 0.0), (0.5, 0.53125, 6.6)])
def test_equals_the_equation_at_this_point_of_the_schedules(progress, temperature, beta):
    net = method(temp_share=1.0, kl_share=0.5)
    context = batch()
    output = net(context, Clock(int(100 * progress), 100, 0.0))
    close(output.loss, written_out(net, context, temperature, beta), atol=1e-5)


def test_schedules_end_where_the_paper_says():
    config = dvae.Config()
    assert (config.temp, config.kl, config.codes) == (1 / 16, 6.6, 8192)
    net = method(kl=2.0)
    context = batch()
    close(net(context, Clock(99, 100, 0.0)).loss, written_out(net, context, 1 / 16, 2.0), atol=1e-5)


def test_what_is_kept_gives_the_logits():
    net = method().eval()
    kept = net.extras().tensors
    patches = net.encoder(batch().views[0][:, 0]).patches
    close(patches @ kept["codes.weight"].T + kept["codes.bias"], net.logits(patches).detach())
    assert not kept["codes.weight"].requires_grad


def test_equal_logits_have_no_divergence():
    net = method()
    torch.nn.init.zeros_(net.logits.weight)
    output = net(batch(), Clock(50, 100, 0.0))
    close(output.metrics["kl"], 0.0)
    close(output.metrics["code_perplexity"], 1.0)  # the likeliest of equals is the first


def test_normalisation_is_part_of_the_state():
    """A report rebuilds the method without being told how images were normalised."""
    one, other = method(), method(preprocess=None)
    other.load_state_dict(one.state_dict())
    images, key = batch().views[0][:, 0], batch().key
    close(one.reconstruct(images, key).images, other.reconstruct(images, key).images)


def test_painted_pixels_stay_within_what_can_be_shown():
    net = method()
    out = 50 * wave(2, 4, 96).float()
    painted = net._image(out, (2, 2)) * net.std + net.mean
    assert float(painted.min()) >= -1e-6
    assert float(painted.max()) <= 1 + 1e-6


@pytest.mark.parametrize(("reconstruction", "loss"), [("l1", pixels.l1), ("l2", pixels.l2)])
def test_other_errors_are_of_normalised_values(reconstruction, loss):
    net = method(reconstruction=reconstruction, kl=0.0)
    context = batch()
    images = context.views[0][:, 0]
    y = gumbel.relaxed(
        net.logits(net.encoder(images).patches), gumbel.noise(context.key, Stream.METHOD, (4, 5)), 1.0
    )
    close(
        net(context, Clock(0, 100, 0.0)).loss,
        loss(decode(net.decoder, y, (2, 2)), patchify(images, 4)).detach(),
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codes": 1}, "at least 2"),
        ({"temp": 0.0}, "above 0"),
        ({"kl": -1.0}, "0 or more"),
        ({"temp_share": 1.5}, r"\[0, 1\]"),
        ({"reconstruction": "gauss"}, "choose 'laplace', 'l1', 'l2'"),
        ({"decoder_dim": 30}, "multiple of 4"),
    ],
)
def test_values_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        dvae.Config(**options)


def test_divergence_of_a_sure_encoder_is_log_k():
    net = method()
    torch.nn.init.zeros_(net.logits.weight)
    net.logits.bias.data[2] = 60.0
    close(net(batch(), Clock(50, 100, 0.0)).metrics["kl"], math.log(5))
