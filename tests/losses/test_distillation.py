"""DINO's loss: closed forms, the equation written out, and numbers of the published code."""

import math

import pytest
import torch
from waves import wave

from omma.backbones.layers.heads import PrototypeHead
from omma.losses import distillation


def close(a, b, atol=2e-6):
    torch.testing.assert_close(torch.as_tensor(a).double(), torch.as_tensor(b).double(), rtol=1e-5, atol=atol)


def dino(student, teacher, temperature):
    """The loss of given logits: the prototypes are the axes."""
    axes = torch.eye(student.shape[-1]).to(student)
    views = distillation.Student(student.flatten(0, 1), axes, temperature, normalised=False)
    return distillation.cross_entropy(views, distillation.other_views(teacher, len(student)))


def dense(student, teacher, temperature):
    """[Caron 2021, eq. 3], loop by loop, in fp64."""
    total, pairs = 0.0, 0
    for i, t in enumerate(teacher.double()):
        for j, s in enumerate(student.double()):
            if i != j:
                total = total - (t * (s / temperature).log_softmax(-1)).sum(-1).mean()
                pairs += 1
    return total / pairs


def test_uniform_is_log_k():
    k = 11
    loss = dino(torch.zeros(4, 3, k), torch.full((2, 3, k), 1 / k), 0.1)
    close(loss, math.log(k))


@pytest.mark.parametrize(("views", "globals_"), [(2, 2), (5, 2), (4, 1)])
def test_equals_the_equation(views, globals_):
    student = wave(views, 3, 7).requires_grad_()
    twin = student.detach().clone().requires_grad_()
    teacher = wave(globals_, 3, 7, phase=1.0).softmax(-1)
    loss, reference = dino(student, teacher, 0.1), dense(twin, teacher, 0.1)
    close(loss, reference)
    loss.backward()
    reference.backward()
    close(student.grad, twin.grad)


def test_one_view_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        dino(torch.zeros(1, 3, 4), torch.full((1, 3, 4), 0.25), 0.1)


# facebookresearch/dino 7c446df, main_dino.DINOLoss(7, 5, .04, .07, 3, 5) in fp64 on wave(...), three steps:
# temperature, loss, gradient's norm, some of its entries, and the centre afterwards
GOLDEN = [
    (0.04, 5.763036349, 2.085264299, [0.003687202, 0.294288197, -0.140050388],
     [0.0124944, 0.000983405, 0.010401886, 0.003745567, 0.008603947, -0.000173105, 0.016550147]),
    (0.055, 4.855123585, 2.204940294, [0.110599167, 0.13262117, -0.059926497],
     [0.026499671, -0.003052453, 0.012843879, 0.016269763, 0.012704474, -0.009500739, 0.028120143]),
    (0.07, 4.476897514, 1.848356956, [-0.016547902, 0.001127126, -0.00852138],
     [0.027839614, -0.007985513, 0.004920467, 0.024835672, 0.008190875, -0.018475751, 0.02304899]),
]  # fmt: skip


def test_numbers_of_the_published_code_over_three_steps():
    b, k, v = 3, 7, 5
    centre = torch.zeros(k)
    for step, (temperature, loss, norm, corner, centre_after) in enumerate(GOLDEN):
        student = wave(v * b, k, phase=step, scale=0.5).requires_grad_()
        logits = wave(2 * b, k, phase=step + 0.5, scale=0.3, step=1.1)
        teacher = distillation.probabilities(logits, centre, temperature).unflatten(0, (2, b))
        ours = dino(student.unflatten(0, (v, b)), teacher, 0.1)
        ours.backward()
        centre = centre.lerp(logits.float().mean(0), 0.1)
        close(ours, loss)
        close(student.grad.norm(), norm)
        close(student.grad[0, :3], corner)
        close(centre, centre_after)


def test_head_gives_the_published_heads_numbers():
    """vision_transformer.DINOHead(6, 7, hidden_dim=8, bottleneck_dim=5) of the same commit."""
    head = PrototypeHead(6, 7, hidden=8, bottleneck=5).double()
    linears = [m for m in head.mlp if isinstance(m, torch.nn.Linear)]
    with torch.no_grad():
        for i, m in enumerate(linears):
            m.weight.copy_(wave(*m.weight.shape, phase=i, scale=0.6))
            m.bias.copy_(wave(*m.bias.shape, phase=i + 0.5, scale=0.2))
        head.last.weight.copy_(wave(7, 5, phase=4, scale=2.0, step=1.3))
    x = wave(2, 6, phase=0.2).requires_grad_()
    y = head(x)
    (y * wave(2, 7, phase=0.9)).sum().backward()
    close(y[0], [0.16350023, 0.410679558, -0.658224727, 0.195017466, 0.090642078, 0.113422084, -0.566109633])
    close(x.grad[0], [0.154937994, 0.094745008, -0.227615569, -0.492773937, -0.228267212, 0.437855873])
    close(head.last.weight.grad[0], [-0.029216257, -0.001764969, -0.00675934, 0.024413079, 0.012991791])
    close(linears[2].bias.grad, [-0.611562318, -0.385222804, 0.72477239, -0.26493346, 0.229690772])
