"""The non-local block against its formula, written place by place."""

import pytest
import torch
import torch.nn.functional as F

from omma.backbones.layers.nonlocal_block import NonLocal


def naive(block, x):
    """Equations 1, 2, 4 and 6 of the paper, place by place."""
    b, _, h, w = x.shape
    half = block.theta.out_channels

    def project(layer, x):
        return torch.einsum("oc,bchw->bohw", layer.weight[:, :, 0, 0], x) + layer.bias[:, None, None]

    theta, phi, g = (project(layer, x) for layer in (block.theta, block.phi, block.g))
    if block.pool:
        phi, g = (F.max_pool2d(F.pad(t, (0, w % 2, 0, h % 2), value=-torch.inf), 2) for t in (phi, g))
    theta, phi, g = (t.reshape(b, half, -1) for t in (theta, phi, g))
    y = torch.zeros(b, half, h * w)
    maps = torch.zeros(b, h * w, phi.shape[2])
    for i in range(h * w):
        f = torch.exp(torch.einsum("bc,bcj->bj", theta[:, :, i], phi))
        maps[:, i] = f / f.sum(1, keepdim=True)
        y[:, :, i] = torch.einsum("bj,bcj->bc", maps[:, i], g)
    z = project(block.w_z, y.view(b, half, h, w))
    norm = block.norm
    z = (z - norm.running_mean[:, None, None]) / torch.sqrt(norm.running_var[:, None, None] + norm.eps)
    return x + z * norm.weight[:, None, None] + norm.bias[:, None, None], maps


@pytest.mark.parametrize("pool", [False, True])
def test_block_is_its_formula(pool):
    torch.manual_seed(0)
    block = NonLocal(8, pool).eval()
    for tensor in (block.norm.weight, block.norm.bias, block.norm.running_mean):
        torch.nn.init.normal_(tensor)
    x = torch.randn(2, 8, 5, 4)
    with torch.no_grad():
        expected, maps = naive(block, x)
        torch.testing.assert_close(block(x), expected)
        torch.testing.assert_close(block.weights(x)[:, 0], maps)
    keys = block.keys(5, 4)
    assert keys == ((3, 2) if pool else (5, 4))
    assert maps.shape[2] == keys[0] * keys[1]


@pytest.mark.parametrize("pool", [False, True])
def test_block_starts_as_the_identity_and_learns(pool):
    block = NonLocal(6, pool).train()
    x = torch.randn(2, 6, 4, 3)
    assert torch.equal(block(x), x)
    torch.nn.init.ones_(block.norm.weight)
    block(x).square().sum().backward()
    for name, p in block.named_parameters():
        # the batch norm removes any constant: of W_z's bias, and of g's, for weights sum to 1; and a
        # constant of phi moves all of a place's products alike
        if name not in ("w_z.bias", "g.bias", "phi.bias"):
            assert p.grad.abs().max() > 1e-5, name
