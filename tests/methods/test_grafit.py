"""Grafit's neighbours: closed forms, the equation written out, and the memory's upkeep."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from waves import wave

from omma.backbones.vit import ViT
from omma.core.protocols import Batch, Clock, Context, Key
from omma.methods import grafit


def close(a, b):
    torch.testing.assert_close(torch.as_tensor(a).double(), torch.as_tensor(b).double(), rtol=1e-5, atol=2e-6)


def test_equal_entries_give_log_of_the_share():
    memory = torch.ones(8, 4) / 2
    same = torch.tensor([[1, 1, 0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1]]).bool()
    others = torch.ones(2, 8).bool()
    others[0, 7] = False
    found = grafit.neighbour_loss(torch.ones(2, 4), memory, same, others, 0.05)
    close(found, [math.log(7 / 2), 0.0])  # all of one's label: nothing to be told from


def test_without_a_neighbour_it_is_zero_with_a_gradient():
    x = wave(2, 4).float().requires_grad_()
    memory = F.normalize(wave(5, 4, phase=1.0).float(), dim=1)
    same = torch.zeros(2, 5).bool()
    same[1, 2] = True
    others = torch.ones(2, 5).bool()
    others[1, 2] = False  # the only one of its label is itself
    found = grafit.neighbour_loss(x, memory, same, others, 0.1)
    close(found, [0.0, 0.0])
    nobody = grafit.neighbour_loss(x, memory, same, torch.zeros(2, 5).bool(), 0.1)
    close(nobody, [0.0, 0.0])
    (found.sum() + nobody.sum()).backward()
    assert torch.isfinite(x.grad).all()


def test_equals_the_equation():
    x = wave(3, 4).requires_grad_()
    twin = x.detach().clone().requires_grad_()
    memory = F.normalize(wave(7, 4, phase=1.0), dim=1).float()
    labels, own = torch.tensor([0, 1, 0, 2, 1, 0, 2]), torch.tensor([0, 1, 3])
    same = labels[own][:, None] == labels
    others = own[:, None] != torch.arange(7)
    found = grafit.neighbour_loss(x, memory, same, others, 0.1)
    expected = []
    for row, i in enumerate(own.tolist()):
        p = {j: (F.normalize(twin[row], dim=0) @ memory[j].double() / 0.1).exp() for j in range(7) if j != i}
        right = sum(v for j, v in p.items() if labels[j] == labels[i])
        expected.append(-torch.log(right / sum(p.values())))
    expected = torch.stack(expected)
    close(found, expected)
    found.sum().backward()
    expected.sum().backward()
    close(x.grad, twin.grad)


# ---------------------------------------------------------------- the memory
def method(images=10):
    torch.manual_seed(0)
    encoder = ViT("toy", depth=1, dim=8, heads=2, hidden=16, patch=4, image_size=8)
    config = grafit.Config(hidden=12, out=4, momentum=0.9)
    return grafit.Method(encoder, config, Context(image_size=8, images=images, classes=("a", "b"))).train()


def batch(index, labels, first=0):
    generator = torch.Generator().manual_seed(first)
    images = torch.randn(len(index), 2, 3, 8, 8, generator=generator)
    return Batch((images,), Key(0, np.zeros(len(index)), np.array(index)), torch.tensor(labels))


def test_memory_fills_as_images_are_seen():
    net = method()
    first, second = batch([3, 0, 7], [1, 0, -1]), batch([9, 3], [0, 2], first=1)
    outputs = [net(data, Clock(0, 10, 0.0)) for data in (first, second)]
    assert (net.memory_labels == -1).all()  # forward changes nothing
    assert all(output.metrics["neighbour_loss"] == 0 for output in outputs)
    net.after_step(Clock(1, 10, 0.0), [output.carry for output in outputs])
    assert net.memory_labels.tolist() == [0, -1, -1, 2, -1, -1, -1, -1, -1, 0]  # 7 has no label
    torch.testing.assert_close(net.memory[[0, 7]], outputs[0].carry[2][[1, 2]])
    torch.testing.assert_close(net.memory[[9, 3]], outputs[1].carry[2])  # the newest of 3
    torch.testing.assert_close(net.memory[[0, 3, 7, 9]].norm(dim=1), torch.ones(4))
    assert {"memory", "memory_labels"} <= set(net.state_dict())


def test_an_image_is_no_neighbour_of_itself():
    net = method()
    data = batch([4, 5], [1, 1])
    net.after_step(Clock(1, 10, 0.0), [net(batch([4], [1]), Clock(0, 10, 0.0)).carry])
    seen = []
    original = grafit.neighbour_loss

    def noted(x, memory, same, others, temperature):
        seen.append((same, others))
        return original(x, memory, same, others, temperature)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grafit, "neighbour_loss", noted)
        net(data, Clock(1, 10, 0.0))
    (same, others), again = seen  # each view looks for its own
    assert all(torch.equal(a, b) for a, b in zip((same, others), again, strict=True))
    assert others.nonzero().tolist() == [[1, 4]]  # 5 may look at 4; 4 at nobody, for 5 is not yet there
    assert bool(same[1, 4])


def test_instance_loss_by_pairs_of_views():
    net = method()
    data = batch([0, 1, 2], [0, 0, 1])
    output = net(data, Clock(0, 10, 0.0))
    twin = method()
    images = torch.cat([data.views[0][:, 0], data.views[0][:, 1]])
    g = twin.head(twin.encoder(images).pooled)
    q = F.normalize(twin.predictor(g), dim=1).chunk(2)
    k = F.normalize(twin.slow_head(twin.slow_encoder(images).pooled), dim=1).chunk(2)
    expected = -((q[0] * k[1]).sum(1).mean() + (q[1] * k[0]).sum(1).mean()) / 2
    torch.testing.assert_close(output.metrics["instance_loss"], expected.detach())


def test_wrong_numbers_are_refused():
    for option in ({"views": 1}, {"temperature": 0.0}, {"instance_weight": -1.0}):
        with pytest.raises(ValueError, match=next(iter(option))):
            grafit.Config(**option)
