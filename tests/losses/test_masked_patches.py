"""The masked patches' loss: closed forms, the equation written out, numbers of DINOv2's and iBOT's code."""

import math

import torch
from waves import wave

from omma.losses import distillation

MASK = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]]).bool()  # nothing of one image is masked


def close(a, b, atol=2e-6):
    torch.testing.assert_close(torch.as_tensor(a).double(), torch.as_tensor(b).double(), rtol=1e-5, atol=atol)


def counts_of(mask):
    return mask.sum(1)[:, None].expand_as(mask)[mask].float()


def of_rows(student, teacher, counts, images, prototypes, temperature=0.1):
    return distillation.cross_entropy(
        distillation.Student(student, prototypes, temperature, normalised=False),
        distillation.hidden_patches(teacher, counts, images, len(student)),
    )


def loss_of(student, teacher, mask, temperature=0.1):
    """Of logits [b, n, k]: the prototypes are the axes."""
    axes = torch.eye(student.shape[-1]).to(student)
    return of_rows(student[mask], teacher[mask], counts_of(mask), len(mask), axes, temperature)


def test_uniform_is_log_k_times_the_share_of_images_with_a_mask():
    k = 11
    loss = loss_of(torch.zeros(3, 4, k), torch.full((3, 4, k), 1 / k), MASK)
    close(loss, math.log(k) * 2 / 3)


def test_nothing_masked_is_zero():
    empty = torch.zeros(3, 4).bool()
    loss = loss_of(wave(3, 4, 5), wave(3, 4, 5).softmax(-1), empty)
    assert loss == 0


def test_equals_the_equation():
    """Each image's mean over its own masked patches, then the mean over images [Zhou 2021, eq. 2 and 3]."""
    student = wave(3, 4, 7).requires_grad_()
    twin = student.detach().clone().requires_grad_()
    teacher = wave(3, 4, 7, phase=1.0).softmax(-1)
    ours = loss_of(student, teacher, MASK)
    total = 0.0
    for i in range(3):
        terms = [
            -(teacher[i, j] * (twin[i, j] / 0.1).log_softmax(-1)).sum() for j in range(4) if bool(MASK[i, j])
        ]
        total = total + sum(terms) / max(len(terms), 1)
    reference = total / 3
    close(ours, reference)
    ours.backward()
    reference.backward()
    close(student.grad, twin.grad)
    assert student.grad[~MASK].abs().max() == 0  # what is visible is not compared


def test_numbers_of_dinov2():
    """facebookresearch/dinov2 b8931f7, iBOTPatchLoss(7).forward_masked(f @ w.T, t, MASK) in fp64."""
    features, prototypes = wave(4, 5, phase=0.1).requires_grad_(), wave(7, 5, phase=0.8).requires_grad_()
    teacher = wave(4, 7, phase=1.3, scale=2.0).softmax(-1)
    loss = of_rows(features, teacher, counts_of(MASK), 3, prototypes)
    loss.backward()
    close(loss, 11.300106217)
    close(features.grad[0], [0.21911778, 0.981611971, 0.074026084, -0.456940135, 0.418832154])
    close(prototypes.grad[0], [0.113261463, 0.322133594, -0.334520334, 0.29493813, 0.06868106])
    close(prototypes.grad.norm(), 5.864218364)


# bytedance/ibot da316d8, main_ibot.iBOTLoss(7, 7, 2, 3, .04, .07, .04, .07, 3, 5) in fp64 on waves, three
# steps: temperature, patches' loss, its gradient's norm and some entries, and the patches' centre afterwards
IBOT_MASK = torch.tensor(
    [[1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
).bool()
IBOT = [
    (0.04, 3.807999, 2.629612608, [-0.028171821, 0.231309296, 0.000369211],
     [0.002120623, -0.002161621, 0.006043192, -0.001498258, 0.003323884, 0.003232478, -0.007083324]),
    (0.055, 2.414531629, 1.857535632, [-0.31577219, 0.041200436, -0.000139696],
     [0.00435498, -0.005412642, 0.003943313, 0.003745916, 0.005551468, 0.009751046, -0.015497793]),
    (0.07, 3.621346859, 2.40319827, [0.082228919, 0.000299756, -0.059771858],
     [0.004442471, -0.006456411, -0.004110319, 0.01037456, 0.004438755, 0.012936761, -0.016722832]),
]  # fmt: skip


def test_numbers_of_ibot_over_three_steps():
    centre = torch.zeros(7)
    for step, (temperature, loss, norm, corner, centre_after) in enumerate(IBOT):
        student = wave(6, 4, 7, phase=step + 0.2, scale=0.5, step=0.9).requires_grad_()
        logits = wave(6, 4, 7, phase=step + 0.7, scale=0.3, step=1.3)
        ours = loss_of(student, distillation.probabilities(logits, centre, temperature), IBOT_MASK)
        ours.backward()
        centre = centre.lerp(logits.float().mean((0, 1)), 0.1)  # of all patches, masked or not
        close(ours, loss)
        close(student.grad.norm(), norm)
        close(student.grad[0, 0, :3], corner)
        close(centre, centre_after)


def test_rows_of_padding_do_not_count():
    """They are there so that heads see few different shapes."""
    student, teacher = wave(5, 4, step=0.7).requires_grad_(), wave(5, 3, step=1.3).softmax(-1)
    prototypes, counts = wave(3, 4, phase=2), torch.tensor([2.0, 2.0, 1.0])
    loss = of_rows(student, teacher[:3], counts, 2, prototypes)
    without = of_rows(student[:3], teacher[:3], counts, 2, prototypes)
    torch.testing.assert_close(loss, without)
    loss.backward()
    assert student.grad[:3].any(1).all()
    assert not student.grad[3:].any()
    empty = of_rows(student[:0], teacher[:0], counts[:0], 2, prototypes)
    assert empty == 0
