"""Regression on features: against scikit-learn, closed forms of angles, and that groups stay whole."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import mean_absolute_error, r2_score
from sklearn.preprocessing import StandardScaler

from omma.data.sources.groups import Groups
from omma.evaluation import judge_targets, regression, ridge
from omma.evaluation.regression import Data, Target

AGE, ANGLE = Target("age"), Target("azimuth", 360.0)


def data(n=60, d=8, noise=0.5, seed=0, groups=None) -> Data:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n + 20, d)).astype(np.float32)
    y = x @ rng.normal(size=d) * 3 + 40 + noise * rng.normal(size=n + 20)
    return Data(x[:n], y[:n], x[n:], y[n:], groups)


def angles(n: int = 200, noise: float = 0.05, seed: int = 0) -> Data:
    """Features in which the angle is a point on a circle; many lie near 0 and 360."""
    rng = np.random.default_rng(seed)
    y = rng.normal(0, 60, n + 50) % 360
    x = np.stack([np.cos(np.deg2rad(y)), np.sin(np.deg2rad(y))], 1) @ rng.normal(size=(2, 6))
    x = (x + noise * rng.normal(size=x.shape)).astype(np.float32)
    return Data(x[:n], y[:n], x[n:], y[n:])


@pytest.mark.parametrize("d", [8, 90], ids=["tall", "wide"])
def test_ridge_is_scikit_learns(d):
    given = data(d=d)
    found = regression.ridge_answer(given, AGE)
    scaler = StandardScaler().fit(given.train)
    model = Ridge(alpha=found.settings["penalty"] * len(given.train))
    model.fit(scaler.transform(given.train), given.train_y)
    assert found.predictions == pytest.approx(model.predict(scaler.transform(given.test)), rel=1e-4)


def test_the_penalty_has_the_least_leave_one_out_error():
    """By the slow way: one fit without each image, for all penalties, with the same scaling."""
    given = data(n=24, noise=6)
    x = StandardScaler().fit_transform(given.train)
    errors = []
    for penalty in ridge.PENALTIES:
        lost = []
        for i in range(24):
            rest = np.arange(24) != i
            # the closed form keeps lambda of all images
            model = Ridge(alpha=penalty * 24).fit(x[rest], given.train_y[rest])
            lost.append((given.train_y[i] - model.predict(x[i : i + 1])[0]) ** 2)
        errors.append(np.mean(lost))
    found = regression.ridge_answer(given, AGE).settings
    assert found["penalty"] == ridge.PENALTIES[int(np.argmin(errors))]
    assert found["held_out_r2"] == pytest.approx(1 - min(errors) / given.train_y.var(), abs=0.02)


def test_knn_averages_the_nearest():
    """Copies weigh the same, and others next to nothing, exp(-1 / T)."""
    x = np.repeat(np.eye(4, dtype=np.float32), 10, 0)
    rng = np.random.default_rng(0)
    y = np.repeat([1.0, 5.0, 20.0, 50.0], 10) + rng.normal(size=40)
    found = regression.knn_answer(Data(x, y, np.eye(4, dtype=np.float32), np.zeros(4)), AGE)
    assert found.settings["k"] == 20
    assert found.predictions == pytest.approx(y.reshape(4, 10).mean(1), abs=1e-4)


@pytest.mark.parametrize("probe", [regression.ridge_answer, regression.knn_answer])
def test_the_test_part_chooses_nothing(probe):
    given = data(noise=3)
    other = given._replace(test=given.test[:5], test_y=given.test_y[:5] * 0)
    one, two = probe(given, AGE), probe(other, AGE)
    assert one.settings == two.settings
    assert one.predictions[:5] == pytest.approx(two.predictions)


@pytest.mark.parametrize("probe", [regression.ridge_answer, regression.knn_answer])
def test_what_is_chosen_is_chosen_on_other_groups(probe):
    """Copies of an image in one group: by image the nearest is perfect, by group it knows nothing."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 5)
    x = (rng.normal(size=(60, 80))[groups] + 1e-3 * rng.normal(size=(300, 80))).astype(np.float32)
    y = rng.normal(size=60)[groups]
    by_image = probe(Data(x, y, x[:4], y[:4]), AGE).settings
    by_group = probe(Data(x, y, x[:4], y[:4], groups), AGE).settings
    assert by_image["held_out_r2"] > 0.9
    assert by_group["held_out_r2"] < 0.3
    with pytest.raises(ValueError, match="one group"):
        probe(Data(x, y, x[:4], y[:4], np.zeros(300, int)), AGE)


def test_figures_are_scikit_learns():
    given = data()
    predicted = regression.ridge_answer(given, AGE).predictions
    found = regression.measure(given, predicted, AGE)
    assert found.fit.value == pytest.approx(r2_score(given.test_y, predicted))
    assert found.mae.value == pytest.approx(mean_absolute_error(given.test_y, predicted))
    for figure in (found.fit, found.mae):
        low, high = figure.interval95
        assert low < figure.value < high
    exact = regression.measure(given, given.test_y, AGE)
    assert (exact.fit.value, exact.mae.value) == (1, 0)
    mean = regression.measure(given, np.full(20, given.test_y.mean()), AGE)
    assert mean.fit.value == pytest.approx(0, abs=1e-12)


def test_intervals_draw_whole_groups():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), 8)
    y, away = rng.normal(size=240), rng.normal(size=30)[groups]
    x = np.zeros((240, 1), np.float32)
    width = {}
    for name, codes in (("image", None), ("group", groups)):
        found = regression.measure(Data(x, y, x, y, None, codes), y + away, AGE)
        width[name] = np.diff(found.mae.interval95)[0]
    assert width["group"] / width["image"] == pytest.approx(np.sqrt(8), rel=0.2)


# ---------------------------------------------------------------- angles
def test_errors_of_angles_go_the_shorter_way_round():
    error = ANGLE.error(np.array([359.0, 10, 90, 0]), np.array([1.0, 350, 270, 720]))
    assert error == pytest.approx([2, 20, 180, 0])
    assert Target("a", 180.0).error(np.array([1.0]), np.array([179.0])) == pytest.approx([2])
    y = np.array([0.0, 90, 225, 359])
    assert ANGLE.decoded(ANGLE.encoded(y)) == pytest.approx(y)
    assert ANGLE.constant(np.array([350.0, 20])) == pytest.approx(5)


def test_circular_r2_is_1_for_the_truth_and_0_for_the_mean_direction():
    given = angles()
    assert regression.measure(given, given.test_y + 360, ANGLE).fit.value == pytest.approx(1)
    mean = np.full(50, ANGLE.constant(given.test_y))
    assert regression.measure(given, mean, ANGLE).fit.value == pytest.approx(0, abs=1e-9)
    # errors of 90 degrees lose 1 each; a spread of angles about 0 by +-60 loses 1 - cos 60 = 1/2 at best
    both = given._replace(test_y=np.tile([60.0, 300.0], 25))
    found = regression.measure(both, both.test_y + 90, ANGLE)
    assert found.fit.value == pytest.approx(1 - 1 / 0.5)
    assert found.mae.value == pytest.approx(90)


@pytest.mark.parametrize("probe", [regression.ridge_answer, regression.knn_answer])
def test_an_angle_is_no_number(probe):
    """About 0, a number jumps by 360: the same probe is far worse without the period."""
    given = angles()
    as_angle = regression.measure(given, probe(given, ANGLE).predictions, ANGLE).mae.value
    as_number = regression.measure(given, probe(given, Target("azimuth")).predictions, ANGLE).mae.value
    assert as_angle < 10
    assert as_number > 1.4 * as_angle


# ---------------------------------------------------------------- data
def test_bad_input_is_refused():
    given = data()
    for wrong, says in (
        (given._replace(train_y=np.full(60, 3.0)), "the same number"),
        (given._replace(test_y=np.full(20, np.nan)), "not finite"),
        (given._replace(train=given.train[:1], train_y=given.train_y[:1]), "two at least"),
    ):
        with pytest.raises(ValueError, match=says):
            regression.ridge_answer(wrong, AGE)
    for period in (0.0, -360.0, np.inf, np.nan):
        with pytest.raises(ValueError, match="must be above 0"):
            Target("x", period)
    with pytest.raises(ValueError, match="choose among ridge, knn"):
        judge_targets.checked(["linear"], "age", None)


def test_parts_hold_whole_groups_and_the_range_of_the_numbers():
    rng = np.random.default_rng(0)
    y = rng.normal(size=200)
    y[::20] = np.nan
    codes = np.arange(200) // 4

    class Images:
        source, splits = "plates", None

        def __len__(self):
            return 200

    train, test, words = judge_targets.parts(Images(), y, 0, Groups("plate", codes))
    assert not np.intersect1d(codes[train], codes[test]).size
    assert len(train) + len(test) == 190
    assert 0.12 < len(test) / 190 < 0.3
    assert words.startswith("split by plate, ")
    assert set(regression.strata(y[np.isfinite(y)])) == set(range(5))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("target", [AGE, ANGLE], ids=["number", "angle"])
def test_draws_of_one_number_do_not_enter_the_interval(target):
    """Ages of three patients: one draw in nine is of a single one, about whose mean only rounding remains."""
    groups = np.repeat(np.arange(3), 5)
    y = np.array([47.1, 52.2, 70.4])[groups]
    x = np.zeros((15, 2), np.float32)
    found = regression.measure(Data(x, y, x, y, groups, groups), y + np.linspace(-9, 9, 15), target)
    low, high = found.fit.interval95
    assert -20 < low < found.fit.value < high <= 1
    assert np.isnan(found.draws).mean() == pytest.approx(1 / 9, abs=0.04)


def test_test_images_of_one_number_are_refused():
    y = np.full(4, 55.3)
    x = np.zeros((4, 2), np.float32)
    with pytest.raises(ValueError, match="all 4 test images have the same age"):
        regression.measure(Data(x, y, x, y), y, AGE)
