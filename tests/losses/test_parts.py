"""TransFG's contrastive loss: closed forms, golden numbers, labels that are missing."""

import pytest
import torch
from waves import wave

from omma.losses.parts import contrast

B = 6


@pytest.mark.parametrize(
    ("x", "labels", "per_image"),
    [
        (torch.ones(B, B), torch.zeros(B).long(), 0.0),
        (torch.eye(B), torch.zeros(B).long(), B - 1.0),
        (torch.eye(B), torch.arange(B), 0.0),
        (torch.ones(B, B), torch.arange(B), 0.6 * (B - 1)),
    ],
    ids=["one-class-identical", "one-class-orthogonal", "different-orthogonal", "different-identical"],
)
def test_closed_forms(x: torch.Tensor, labels: torch.Tensor, per_image: float) -> None:
    """Of a sum over ordered pairs, where an image's pair with itself adds nothing."""
    assert contrast(3 * x, labels, per="image").item() == pytest.approx(per_image, abs=1e-5)
    assert contrast(3 * x, labels).item() == pytest.approx(per_image / B, abs=1e-5)


def test_margin_is_where_other_classes_stop_repelling() -> None:
    x = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    assert contrast(x, torch.tensor([0, 1]), margin=0.6).item() == pytest.approx(0, abs=1e-6)
    assert contrast(x, torch.tensor([0, 1]), margin=0.5).item() == pytest.approx(2 * 0.1 / 4)


def test_images_without_label_are_left_out() -> None:
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.tensor([0, -1, 0, 1, -1])
    loss = contrast(x, labels)
    assert loss.item() == pytest.approx(contrast(x[[0, 2, 3]], labels[[0, 2, 3]]).item())
    loss.backward()
    assert x.grad is not None
    assert (x.grad[[1, 4]] == 0).all()
    assert (x.grad[[0, 2, 3]] != 0).any(1).all()
    assert contrast(x, torch.full((5,), -1)).item() == 0


def test_shares_of_all_pairs_have_the_mean_of_all_pairs() -> None:
    """Two processes, each with its rows of the pairs."""
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 1, 2, 0, 0, 1, 1, 2])
    halves = [contrast(x[i : i + 4], labels[i : i + 4], everyone=(x, labels)) for i in (0, 4)]
    assert torch.stack(halves).mean().item() == pytest.approx(contrast(x, labels).item(), abs=1e-6)


def test_golden_numbers():
    """`con_loss` of TACJu/TransFG, commit 9336fba, in fp64."""
    x, labels = wave(6, 5).float().requires_grad_(), torch.tensor([0, 1, 0, 2, 1, 0])
    loss = contrast(x, labels)
    loss.backward()
    assert loss.item() == pytest.approx(0.26721124079242925, abs=1e-6)
    gradient = [-0.0110071697, -0.0113296038, 0.0178888694, -0.0332509935, -0.0304672693]
    torch.testing.assert_close(x.grad[0], torch.tensor(gradient), atol=1e-6, rtol=0)
