"""The teacher's temperature over a run, against the schedules of the published codes."""

import numpy as np
import pytest

from omma.core.protocols import Clock
from omma.methods import dino, dinov2
from omma.methods.shared.self_distillation import teacher_temperature


def test_it_changes_with_epochs_as_in_dino() -> None:
    """DINOLoss of facebookresearch/dino 7c446df: np.linspace over 30 epochs, one value an epoch."""
    config = dino.Config()
    published = np.concatenate([np.linspace(0.04, 0.07, 30), np.full(70, 0.07)])
    for step in range(0, 700, 3):  # 7 steps an epoch
        temperature = teacher_temperature(config, Clock(step, 700, step / 7, 100))
        assert temperature == pytest.approx(published[step // 7], abs=1e-12)


def test_it_changes_with_steps_as_in_dinov2() -> None:
    """CosineScheduler of facebookresearch/dinov2 b8931f7: np.linspace over 30 epochs of 1,250 steps."""
    config = dinov2.Config()
    published = np.linspace(0.04, 0.07, 37_500)
    for step in (0, 1, 1249, 20_000, 37_499):
        temperature = teacher_temperature(config, Clock(step, 625_000, step / 1250, 500))
        assert temperature == pytest.approx(published[step], abs=1e-12)
    assert teacher_temperature(config, Clock(37_500, 625_000, 30.0, 500)) == pytest.approx(0.07)


@pytest.mark.parametrize("file", [dino, dinov2])
def test_a_short_run_warms_up_too(file) -> None:
    config, steps = file.Config(), 100
    values = [teacher_temperature(config, Clock(s, steps, s / 10, 10)) for s in range(steps)]
    assert values[0] == pytest.approx(0.04)
    assert values[28] < 0.07
    assert values[30:] == pytest.approx([0.07] * 70)
    assert values == sorted(values)
