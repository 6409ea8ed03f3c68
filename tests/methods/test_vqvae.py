"""VQ-VAE: the codebook's closed forms, a published quantiser's numbers, and what is kept for BEiT."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from waves import wave

from omma.backbones.vit import ViT
from omma.core.protocols import Batch, Clock, Context, Key
from omma.losses import quantisation
from omma.methods import vqvae
from omma.methods.shared.pixel_decoding import decode
from omma.methods.vqvae import Codebook, CodeStats
from omma.ops.patches import unpatchify


def close(a, b, atol=2e-6):
    torch.testing.assert_close(torch.as_tensor(a).double(), torch.as_tensor(b).double(), rtol=1e-5, atol=atol)


def method(**options) -> vqvae.Method:
    torch.manual_seed(0)
    encoder = ViT("toy", depth=1, dim=8, heads=2, hidden=16, patch=4, image_size=8, pool="mean")
    settings = {"codes": 5, "code_dim": 4, "decoder_depth": 1, "decoder_dim": 8, "decoder_heads": 2}
    return vqvae.Method(encoder, vqvae.Config(**(settings | options)), Context(image_size=8))


def batch(b: int = 6, start: int = 0) -> Batch:
    images = wave(b, 1, 3, 8, 8, phase=start, step=0.31).float()
    return Batch((images,), Key(0, np.zeros(b, np.int64), np.arange(start, start + b)))


def book(codes: torch.Tensor, normalised: bool = False) -> Codebook:
    made = Codebook(*codes.shape, normalised)
    codes = made.placed(codes)
    made.codes.copy_(codes)
    made.counts.fill_(1.0)
    made.sums.copy_(codes)
    return made


def stats_of(made: Codebook, z: torch.Tensor) -> CodeStats:
    lots = torch.arange(len(z))
    return made.stats(z, made.nearest(z), lots)


# lucidrains/vector-quantize-pytorch 1.6.30, VectorQuantize(4, 5, decay=.9, commitment_weight=.25), three
# steps on waves: codes chosen, weighted commitment, first gradient, its norm; and the codes afterwards
GOLDEN = {
    False: (
        [
            ([0, 4, 1, 3, 3, 4, 0, 4, 4, 0, 0, 0], 0.119866483,
             [0.786251485, 0.921019435, -0.605533361, 0.060931906], 4.4243083),
            ([1, 4, 4, 4, 0, 1, 1, 4, 0, 0, 0, 0], 0.0900883004,
             [0.788141966, 0.919168115, -0.595716596, 0.064920634], 4.427880764),
            ([4, 1, 2, 4, 1, 1, 1, 1, 0, 0, 1, 0], 0.0768780932,
             [0.792791545, 0.917563021, -0.602921963, 0.042585108], 4.439499855),
        ],
        [0.213871911, 0.808749139, 0.042207208, -0.48906669, 0.459206611, 0.125008956, -0.825264275,
         -0.372561067, -0.870858014, -0.949056447, 0.217962876, 0.629020512, -0.768107414, 0.464487761,
         0.732918143, -0.34328711, -0.242921427, -0.414998055, 0.531737089, 0.688088357],
    ),
    True: (
        [
            ([1, 4, 1, 3, 3, 2, 0, 4, 4, 0, 0, 0], 0.0552414022,
             [0.274694145, 0.152117372, 0.03246963, -0.325526893], 1.812357783),
            ([1, 4, 2, 4, 0, 1, 1, 2, 0, 0, 0, 0], 0.0446260534,
             [0.139348418, 0.497266263, -0.059208423, -0.287648797], 2.833602905),
            ([2, 2, 2, 2, 1, 1, 2, 1, 0, 0, 1, 0], 0.0477854311,
             [0.873054326, 0.826887548, -0.612597823, 0.081572689], 3.007156849),
        ],
        [0.197491571, 0.789236546, 0.08537513, -0.575164258, 0.460122854, 0.246975273, -0.778878629,
         -0.347330242, -0.257909179, -0.793466866, 0.014316415, 0.551079214, -0.639059246, 0.38039133,
         0.607034385, -0.280026734, -0.492592275, -0.259108782, 0.622972012, 0.549655735],
    ),
}  # fmt: skip


@pytest.mark.parametrize("normalised", [False, True])
def test_three_steps_of_a_published_quantiser(normalised):
    steps, codes = GOLDEN[normalised]
    made = book(wave(5, 4, phase=0.2).float(), normalised)
    for step, (index, loss, first, norm) in enumerate(steps):
        raw = wave(12, 4, phase=step + 0.5, step=1.1).float().requires_grad_()
        z = made.placed(raw)
        found = made.nearest(z.detach())
        assert found.tolist() == index
        code = made.codes[found]
        commitment = 0.25 * quantisation.commitment(z, code)
        through = z + (code - z).detach()
        ((through * wave(12, 4, phase=0.9).float()).sum() + commitment).backward()
        close(commitment, loss)
        close(raw.grad[0], first)
        close(raw.grad.norm(), norm, atol=1e-5)
        made.update([stats_of(made, z.detach())], 0.9, 0.0)
    close(made.codes.flatten(), codes)


@pytest.mark.parametrize("normalised", [False, True])
def test_the_nearest_code_is_one_linear_map_of_the_features(normalised):
    made = book(wave(7, 3, phase=0.4).float(), normalised)
    weight, bias, f = wave(3, 6).float(), wave(3, phase=1.0).float(), wave(40, 6, phase=2.0).float()
    z = made.placed(f @ weight.T + bias)
    distance = torch.cdist(z, made.codes)
    assert torch.equal(made.nearest(z), distance.argmin(1))
    w, b = made.linear(weight, bias)
    assert torch.equal((f @ w.T + b).argmax(1), distance.argmin(1))


def test_extras_give_the_codes_that_training_used():
    net = method(normalised=True).eval()
    for step in range(3):
        output = net(batch(start=step), Clock(step, 10, 0.0))
        net.after_step(Clock(step, 10, 0.0), [output.carry])
    kept = net.extras().tensors
    images = batch().views[0][:, 0]
    patches = net.encoder(images).patches
    index = net._encode(images)[2]
    assert torch.equal((patches @ kept["codes.weight"].T + kept["codes.bias"]).argmax(-1).flatten(), index)
    assert net.extras().facts == {"codes": 5}


def test_gradients_pass_straight_through():
    """Of z + sg[e - z] with regard to z: the identity; the codebook is no parameter."""
    net = method(commitment=0.0)
    net(batch(), Clock(0, 1, 0.0)).loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in net.project.parameters())
    assert not [n for n, _ in net.named_parameters() if "codebook" in n]
    assert {"codebook.codes", "codebook.counts", "codebook.sums"} <= net.state_dict().keys()


def test_a_codes_place_is_the_mean_of_those_who_chose_it():
    """With decay 0 one update is one step of k-means."""
    made = book(torch.tensor([[0.0, 0.0], [10.0, 10.0]]))
    z = torch.tensor([[1.0, 0.0], [0.0, 3.0], [9.0, 9.0]])
    made.update([stats_of(made, z)], 0.0, 0.0)
    close(made.codes, [[0.5, 1.5], [9.0, 9.0]], atol=1e-4)
    close(made.counts, [2.0, 1.0])


def test_unused_codes_are_put_where_encodings_are_in_the_order_of_the_lots():
    made = book(torch.tensor([[0.0, 0.0], [50.0, 50.0], [60.0, 60.0], [70.0, 70.0]]))
    made.counts.copy_(torch.tensor([10.0, 0.0, 0.0, 0.0]))
    z = torch.tensor([[1.0, 0.0], [0.0, 3.0], [2.0, 2.0]])
    lots = torch.tensor([70, 10, 40])
    made.update([made.stats(z, made.nearest(z), lots)], 0.9, 0.1)
    close(made.codes[1:], z[[1, 2, 0]])
    mean = (0.9 * 10 + 0.1 * 3) / 4
    close(made.counts[1:], [mean] * 3)
    close(made.sums[1:], mean * made.codes[1:])


def test_without_revival_unused_codes_stay():
    made = book(torch.tensor([[0.0, 0.0], [50.0, 50.0]]))
    made.counts.zero_()
    made.sums.zero_()
    made.update([stats_of(made, torch.tensor([[1.0, 0.0]]))], 0.9, 0.0)
    close(made.codes, [[1.0, 0.0], [50.0, 50.0]], atol=1e-2)


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_micro_batches_are_one_batch(parts: int):
    """Counts, sums and those drawn by lot do not depend on how the batch was cut, nor in which order."""
    made = book(wave(6, 3).float())
    made.counts[3:] = 0.0
    z, lots = wave(16, 3, phase=0.7, step=1.3).float(), torch.randperm(16)
    cut: Sequence[CodeStats] = [
        made.stats(a, made.nearest(a), b) for a, b in zip(z.chunk(parts), lots.chunk(parts), strict=True)
    ]
    made.update(list(reversed(cut)), 0.9, 0.5)
    twin = book(wave(6, 3).float())
    twin.counts[3:] = 0.0
    twin.update([twin.stats(z, twin.nearest(z), lots)], 0.9, 0.5)
    for name, value in made.state_dict().items():
        close(value, twin.state_dict()[name])


def test_all_codes_are_in_reach_after_the_first_step():
    """The codebook's random start does not outlive the first update: codes lie among encodings."""
    net = method(codes=16)
    output = net(batch(b=12), Clock(0, 10, 0.0))
    net.after_step(Clock(0, 10, 0.0), [output.carry])
    z = net._encode(batch(b=12).views[0][:, 0])[0].detach().flatten(0, 1)
    assert F.mse_loss(net.codebook.codes.mean(0), z.mean(0)) < z.var(0).mean()
    close(torch.cdist(net.codebook.codes, z).min(1).values.max(), 0.0, atol=float(z.std()))


def test_reconstruct_decodes_the_codes():
    net = method().eval()
    images = batch().views[0][:, 0]
    made = net.reconstruct(images, batch().key)
    assert made.hidden is None
    code = net._encode(images)[1]
    close(made.images, unpatchify(decode(net.decoder, code, (2, 2)), 4, (2, 2)).detach())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codes": 1}, "at least 2"),
        ({"decay": 1.0}, r"decay=1.0: must lie in \[0, 1\)"),
        ({"commitment": -1.0}, "0 or more"),
        ({"reconstruction": "l3"}, "choose 'l1', 'l2'"),
        ({"decoder_dim": 30}, "multiple of 4"),
    ],
)
def test_values_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        vqvae.Config(**options)
