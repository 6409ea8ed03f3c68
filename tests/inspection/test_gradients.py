"""Integrated gradients and Grad-CAM: closed forms, completeness, captum, and what is refused."""

import dataclasses

import numpy as np
import pytest
import torch
from explained import bright, squares, subject

from omma.inspection import gradcam, gradients


def test_a_linear_score_is_attributed_exactly():
    """The mean over 3 x 32 x 32 values: each adds its own share."""
    images, _ = squares(2)
    found = gradients.integrated(bright(images), steps=2)
    np.testing.assert_allclose(found.values, images.numpy() / (3 * 1024), atol=1e-7)
    np.testing.assert_allclose(found.sums, found.difference, rtol=1e-5)


@pytest.mark.parametrize("classified", [True, False], ids=["logit", "cosine"])
def test_attributions_sum_to_the_difference(classified):
    made = subject(classified=classified)
    found = gradients.integrated(made)
    assert (found.error < 0.02).all()
    assert (np.abs(found.difference) > 1e-4).all()
    rough = gradients.integrated(made, steps=2)
    assert rough.error.max() > found.error.max()


def test_integrated_gradients_equal_captum():
    captum = pytest.importorskip("captum.attr", reason="captum is the reference here")
    made = subject(n=1)

    def score(images: torch.Tensor) -> torch.Tensor:
        return made.target(made.encoder(images), torch.zeros(len(images), dtype=torch.int64))

    expected = captum.IntegratedGradients(score).attribute(
        made.pixels, baselines=0.0, n_steps=64, method="gausslegendre"
    )
    found = gradients.integrated(made, steps=64)
    np.testing.assert_allclose(found.values, expected.detach().numpy(), atol=1e-5)


def test_cells_sum_their_pixels():
    values = np.arange(2 * 3 * 8 * 8, dtype=np.float32).reshape(2, 3, 8, 8)
    cells = gradients.summed(values, (4, 2))
    assert cells.shape == (2, 4, 2)
    np.testing.assert_allclose(cells[0, 0, 0], values[0, :, :2, :4].sum(), rtol=1e-6)
    np.testing.assert_allclose(cells.sum((1, 2)), values.sum((1, 2, 3)), rtol=1e-6)


def test_what_does_not_sum_is_said():
    made = subject(n=1)
    object.__setattr__(made, "pixels", made.pixels * 1000)  # far from grey, the score bends at once
    noted = gradients.explain(made)
    assert "sum" in noted.caption
    found = gradients.integrated(made)
    assert bool(noted.notes) == (found.error.max() > gradients.TOLERANCE)


def test_gradcam_by_hand():
    """Of a mean-pooled linear score the channel weights are the classifier's row / n: class activation."""
    made = subject(pool="mean_fc_norm", class_token=False, n=2)
    made.encoder.fc_norm = torch.nn.Identity()
    with torch.no_grad():
        features = made.encoder(made.pixels)
    rows = made.model.extras.tensors["classifier.weight"][made.target.classes]
    expected = (features.patches * rows[:, None] / 16).sum(-1).relu().unflatten(1, (4, 4))
    np.testing.assert_allclose(gradcam.gradcam(made), expected.numpy(), atol=1e-6)


def test_where_a_token_is_pooled_the_last_blocks_input_is_weighted():
    made, tokens = subject(n=1), []
    hook = made.encoder.blocks[-1].register_forward_pre_hook(lambda block, args: tokens.append(args[0]))
    score = made.target(made.encoder(made.pixels.clone().requires_grad_()), torch.zeros(1, dtype=torch.int64))
    hook.remove()
    (gradient,) = torch.autograd.grad(score.sum(), tokens[0])
    expected = torch.zeros(16)
    for channel in range(32):
        expected += gradient[0, 1:, channel].mean() * tokens[0][0, 1:, channel].detach()
    found = gradcam.gradcam(made)
    np.testing.assert_allclose(found.reshape(-1), expected.relu().numpy(), atol=1e-6)
    assert found.max() > 0


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("timm:resnet18", {}, 96),
        ("cait-xxs24", {"depth": 1, "patch": 4}, 16),
        ("swin", {"dim": 24, "depths": (1, 1), "heads": (2, 2)}, 32),
        ("vit/4", {"registers": 2}, 16),
        ("vit/4", {"mixer": "fourier"}, 16),
    ],
    ids=["resnet", "cait", "swin", "registers", "fourier"],
)
def test_every_family_has_gradcam(name, options, size):
    made = subject(name, size=size, **options)
    found = gradcam.gradcam(made)
    assert gradcam.lacks(made) is None
    assert found.shape == (2, *made.grid)
    assert np.isfinite(found).all()
    assert (found >= 0).all()
    assert found.max() > 0


def test_gradcam_of_a_convolutional_network_equals_captum():
    captum = pytest.importorskip("captum.attr", reason="captum is the reference here")
    made = subject("timm:resnet18", size=96, n=1)
    encoder = made.encoder

    class Whole(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = encoder

        def forward(self, images):
            return made.target(self.encoder(images), torch.zeros(len(images), dtype=torch.int64))

    layer = captum.LayerGradCam(Whole(), encoder.layer4)
    expected = layer.attribute(made.pixels.clone().requires_grad_(), relu_attributions=True)
    np.testing.assert_allclose(gradcam.gradcam(made), expected[:, 0].detach().numpy(), rtol=1e-3, atol=1e-6)


def test_a_class_changes_the_map_and_a_hidden_token_is_refused():
    made = subject(n=1)
    other = dataclasses.replace(made.target, classes=(made.target.classes + 1) % 3)
    assert not np.allclose(gradcam.gradcam(made), gradcam.gradcam(dataclasses.replace(made, target=other)))
    small = subject("timm:resnet18", size=32, n=1)
    assert "one vector" in (gradcam.lacks(small) or "")


def test_without_classifier_the_gradient_is_not_that_at_the_peak():
    made = subject(classified=False, pool="mean", n=1)
    assert gradcam.gradcam(made).max() > 1e-3
    assert "no classifier" in gradcam.explain(made).caption
