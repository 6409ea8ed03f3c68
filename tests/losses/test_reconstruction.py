"""MAE's loss and whole forward pass, SimMIM's loss: closed forms and numbers of the published code."""

import pytest
import torch
from waves import wave

from omma.backbones.vit import ViT
from omma.core.protocols import Context
from omma.losses import reconstruction
from omma.methods import mae
from omma.ops.patches import normalised, patchify, unpatchify
from omma.ops.positions import sincos_2d


def close(a, b, atol=2e-6):
    torch.testing.assert_close(torch.as_tensor(a).double(), torch.as_tensor(b).double(), rtol=1e-5, atol=atol)


def test_perfect_known_and_unmasked():
    target = wave(2, 4, 6)
    mask = torch.tensor([[True, False, True, False], [False, True, False, False]])
    close(reconstruction.masked_mse(target, target, mask), 0.0)
    wrong = target.clone()
    wrong[1, 1] += 2.0
    wrong[0, 1] += 100.0  # visible: does not count
    close(reconstruction.masked_mse(wrong, target, mask), 4.0 / 3)
    close(reconstruction.masked_mse(wrong, target, torch.zeros(2, 4).bool()), 0.0)


# facebookresearch/mae efb2a80, MaskedAutoencoderViT.forward_loss on wave(...): loss, gradient's norm
@pytest.mark.parametrize(
    ("norm", "loss", "size"), [(False, 0.845734439, 0.118724783), (True, 1.349801645, 0.14998898)]
)
def test_loss_of_the_published_code(norm, loss, size):
    images, guess = wave(2, 3, 8, 8, phase=0.3), wave(2, 3, 8, 8, phase=1.1, scale=0.8, step=0.45)
    predicted = patchify(guess, 4).requires_grad_()
    target = patchify(images, 4)
    mask = torch.tensor([[True, False, True, True], [False, True, True, False]])
    ours = reconstruction.masked_mse(predicted, normalised(target) if norm else target, mask)
    ours.backward()
    close(ours, loss)
    close(predicted.grad.norm(), size)


def test_l1_perfect_known_and_unmasked():
    target = wave(2, 4, 6)
    mask = torch.tensor([[True, False, True, False], [False, True, False, False]])
    close(reconstruction.masked_l1(target, target, mask, 3), 0.0)
    wrong = target.clone()
    wrong[1, 1] -= 2.0
    wrong[0, 1] += 100.0  # visible: does not count
    close(reconstruction.masked_l1(wrong, target, mask, 3), 2.0 / 3)
    close(reconstruction.masked_l1(wrong, target, mask, torch.tensor(6.0)), 1.0 / 3)  # as many elsewhere
    close(reconstruction.masked_l1(wrong, target, torch.ones(2, 4).bool(), 8), 102.0 / 8)


def test_l1_of_the_published_simmim():
    """microsoft/SimMIM d3e29bc, models.simmim.SimMIM.forward of wave features and a bare PixelShuffle(4)."""
    features = wave(2, 48, 2, 2, phase=1.1, scale=0.8, step=0.45).requires_grad_()
    predicted = features.flatten(2).transpose(1, 2)
    mask = torch.tensor([[1, 0, 1, 1], [0, 1, 0, 0]]).bool()
    ours = reconstruction.masked_l1(predicted, patchify(wave(2, 3, 8, 8, phase=0.3), 4), mask, mask.sum())
    ours.backward()
    close(ours, 0.727257626)
    close(features.grad.norm(), 0.072168772)
    close(features.grad[0, :4, 0, 0], [0.005208333, -0.005208333, -0.005208333, 0.005208333])


def test_sincos_positions_of_the_published_code():
    """get_2d_sincos_pos_embed(16, 3), row 1: the column's code first."""
    first = [0.841470985, 0.099833417, 0.009999833, 0.001, 0.540302306, 0.995004165, 0.99995, 0.9999995]
    close(sincos_2d(16, (3, 3))[1], first + [0.0] * 4 + [1.0] * 4)


def official_order(method):
    """Our parameters in the order of the published model's, position embeddings left out."""
    encoder, decoder = method.encoder, method.decoder

    def block(b):
        return [b.norm1.weight, b.norm1.bias, b.attn.qkv.weight, b.attn.qkv.bias, b.attn.proj.weight,
                b.attn.proj.bias, b.norm2.weight, b.norm2.bias, b.mlp.fc1.weight, b.mlp.fc1.bias,
                b.mlp.fc2.weight, b.mlp.fc2.bias]  # fmt: skip

    yield from (encoder.cls_token, decoder.mask_token, *encoder.patch_embed.proj.parameters())
    for b in encoder.blocks:
        yield from block(b)
    yield from (*encoder.norm.parameters(), *decoder.embed.parameters())
    for b in decoder.blocks:
        yield from block(b)
    yield from (*decoder.norm.parameters(), *decoder.predict.parameters())


def test_forward_and_gradients_of_the_published_model():
    """MaskedAutoencoderViT(12, 4, 3, 16, 2, 2, 8, 1, 2, 4) with the mask that its noise gave."""
    config = mae.Config(decoder_depth=1, decoder_dim=8, decoder_heads=2)
    encoder = ViT("toy", depth=2, dim=16, heads=2, hidden=64, patch=4, image_size=12, positions="sincos")
    method = mae.Method(encoder, config, Context(image_size=12)).double()
    for module in method.modules():  # the published decoder's norms have this eps, too
        if isinstance(module, torch.nn.LayerNorm):
            assert module.eps == 1e-6
    norms = {id(p) for m in method.modules() if isinstance(m, torch.nn.LayerNorm) for p in [m.weight]}
    parameters = list(official_order(method))
    assert len(parameters) == 48
    with torch.no_grad():
        for i, p in enumerate(parameters):
            p.copy_(wave(*p.shape, phase=i, scale=0.3) + (1.0 if id(p) in norms else 0.0))
        # the published predictor orders a patch row, column, channel; ours channel, row, column
        order = torch.arange(48).view(4, 4, 3).permute(2, 0, 1).flatten()
        for p in method.decoder.predict.parameters():
            p.copy_(p[order])
        encoder.pos_embed[0, 1:] = sincos_2d(16, (3, 3)).double()
    images = wave(2, 3, 12, 12, phase=0.3)
    keep = torch.tensor([[1, 3], [0, 1]])
    mask = torch.ones(2, 9).scatter(1, keep, 0.0).bool()
    predicted = method._predict(images, keep)
    loss = reconstruction.masked_mse(predicted, normalised(patchify(images, 4)), mask)
    loss.backward()
    close(loss, 1.383965871)
    picture = unpatchify(predicted, 4, (3, 3))
    close(picture[0, :, 0, 0], [-1.139804673, 0.866984685, 0.659287791])
    close(picture[1, :, 7, 10], [-0.524310145, 0.549050737, -0.323923302])
    close(encoder.cls_token.grad[0, 0, :4], [-0.005430705, 0.009545697, -0.009230831, 0.011250442])
    close(encoder.patch_embed.proj.weight.grad[0, :, 0, 1], [0.000328735, -0.000240039, 0.000966478])
    first, second = encoder.blocks
    close(first.attn.qkv.weight.grad[3, :4], [0.000302805, 0.000573142, 0.000395963, 0.001699249])
    close(second.attn.qkv.weight.grad[40, :4], [0.001715946, -0.00049382, -0.00314169, 0.000795021])
    close(method.decoder.mask_token.grad[0, 0, :4], [0.067677503, 0.120821358, -0.093741333, -0.042458675])
    total = sum(p.grad.square().sum() for p in parameters).sqrt()
    close(total, 0.847608582)
