"""iBOT: its whole loss by hand, both centres of the published code, and what is hidden."""

import copy

import numpy as np
import pytest
import torch
from waves import wave

from omma.backbones.vit import ViT
from omma.core.protocols import Batch, Clock, Context, Key
from omma.losses import distillation
from omma.methods import dino, ibot
from omma.methods.shared.masking import view_masks

# bytedance/ibot da316d8, main_ibot.iBOTLoss(7, 7, 2, 3, .04, .07, .04, .07, 3, 5) in fp64 after three steps
CENTRE = [0.027839614, -0.007985513, 0.004920467, 0.024835672, 0.008190875, -0.018475751, 0.02304899]
PATCH_CENTRE = [0.004442471, -0.006456411, -0.004110319, 0.01037456, 0.004438755, 0.012936761, -0.016722832]


def method(**options):
    torch.manual_seed(0)
    encoder = ViT("toy", depth=1, dim=8, heads=2, hidden=16, patch=4, image_size=16)
    for p in encoder.parameters():
        p.data += 0.3 * torch.randn_like(p)
    config = ibot.Config(prototypes=7, head_hidden=8, head_bottleneck=4, **options)
    return ibot.Method(encoder, config, Context(image_size=16))


def batch(n=3):
    generator = torch.Generator().manual_seed(1)
    shapes = ((1, 16), (1, 16), (2, 8))
    views = tuple(torch.randn(n, v, 3, s, s, generator=generator) for v, s in shapes)
    return Batch(views, Key(0, np.zeros(n), np.arange(n)))


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_centres_after_three_steps_of_any_micro_batches(parts):
    net = method()
    for step in range(3):
        images = wave(6, 7, phase=step + 0.5, scale=0.3, step=1.1).float().chunk(parts)
        patches = wave(6, 4, 7, phase=step + 0.7, scale=0.3, step=1.3).float().chunk(parts)
        carries = [torch.stack([i.mean(0), p.mean((0, 1))]) for i, p in zip(images, patches, strict=True)]
        net.after_step(Clock(step + 1, 3, 0.0), carries)
    torch.testing.assert_close(net.centre, torch.tensor(CENTRE), atol=1e-6, rtol=0)
    torch.testing.assert_close(net.patch_centre, torch.tensor(PATCH_CENTRE), atol=1e-6, rtol=0)
    assert {"centre", "patch_centre"} <= set(net.state_dict())


def test_forward_is_the_equations():
    """Hidden tokens replaced, all patches through the head, the two losses added [Zhou 2021, eq. 2 and 3]."""
    net, data = method(mask_probability=0.8, patch_weight=0.7), batch()
    net.centre += torch.linspace(-0.1, 0.1, 7)
    net.patch_centre += torch.linspace(0.2, -0.2, 7)
    twin = copy.deepcopy(net)
    output = net(data, Clock(0, 10, 0.0))

    images = torch.cat([data.views[0][:, 0], data.views[1][:, 0]])
    mask = view_masks(data.key, 2, (4, 4), 0.8, (0.1, 0.5), 1)
    assert 0 < mask.sum() < mask.numel()
    tokens = twin.encoder.tokenize(images)
    tokens = torch.where(mask[:, :, None], twin.mask_token, tokens)
    seen, local = (
        twin.encoder.encode(tokens, (4, 4)),
        twin.encoder(data.views[2].transpose(0, 1).flatten(0, 1)),
    )
    student = twin.head(torch.cat([seen.pooled, local.pooled])).view(4, 3, 7)
    with torch.no_grad():
        whole = twin.teacher(images)
        logits, patch_logits = twin.teacher_head(whole.pooled), twin.teacher_head(whole.patches)
        teacher = distillation.probabilities(logits, net.centre, 0.04).view(2, 3, 7)
        patch_teacher = distillation.probabilities(patch_logits, net.patch_centre, 0.04)
    log = (student / 0.1).log_softmax(-1)
    pairs = [(i, j) for i in range(2) for j in range(4) if i != j]
    image_loss = torch.stack([-(teacher[i] * log[j]).sum(-1).mean() for i, j in pairs]).mean()
    each = -(patch_teacher * (twin.head(seen.patches) / 0.1).log_softmax(-1)).sum(-1)
    patch_loss = ((each * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()
    expected = image_loss + 0.7 * patch_loss
    torch.testing.assert_close(output.loss, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(output.metrics["patch_loss"], patch_loss.detach(), rtol=1e-5, atol=1e-6)
    centres = torch.stack([logits.mean(0), patch_logits.mean((0, 1))])
    torch.testing.assert_close(output.carry, centres, rtol=1e-5, atol=1e-6)

    output.loss.backward()
    expected.backward()
    for (name, p), (_, q) in zip(net.named_parameters(), twin.named_parameters(), strict=True):
        if p.requires_grad:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-5, msg=name)
        else:
            assert p.grad is None, name


def test_without_masks_it_is_dino():
    net = method(mask_probability=0.0)
    output = net(batch(), Clock(0, 10, 0.0))
    assert output.metrics["patch_loss"] == 0
    config = dino.Config(prototypes=7, head_hidden=8, head_bottleneck=4)
    twin = dino.Method(copy.deepcopy(net.encoder), config, Context(image_size=16))
    twin.load_state_dict(net.state_dict(), strict=False)
    torch.testing.assert_close(output.loss, twin(batch(), Clock(0, 10, 0.0)).loss, check_dtype=False)


def test_wrong_numbers_are_refused():
    for option in ({"mask_probability": 1.5}, {"mask_share": (0.5, 0.1)}, {"prototypes": 1}):
        with pytest.raises(ValueError, match=next(iter(option))):
            ibot.Config(**option)
