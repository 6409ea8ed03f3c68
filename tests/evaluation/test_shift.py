"""Domains against each other: folds, matrices, gaps, alignment, and that no label of a target is read."""

import numpy as np
import pytest

from omma.data.sources import domains as sources
from omma.data.sources.collection import ArrayImages
from omma.data.sources.groups import Groups
from omma.evaluation import align, domains, linear, shift
from omma.evaluation.domains import Compared
from omma.evaluation.judge_domains import measured
from omma.evaluation.shift_table import About

WIDTH = 6


@pytest.fixture
def few_penalties(monkeypatch):
    """Weak ones take many steps on separable toys."""
    monkeypatch.setattr(linear, "PENALTIES", (1.0, 0.1))


def rotation(width: int = WIDTH, seed: int = 0) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(width, width)))[0]


def toy(n: int = 60, shift_by: float = 0.0, turn: np.ndarray | None = None, seed: int = 0):
    """Features of two domains of two classes: the second one is moved and turned."""
    rng = np.random.default_rng(seed)
    labels, where = np.tile(np.arange(2), n), np.repeat(np.arange(2), n)
    x = rng.normal(size=(2 * n, WIDTH)) * np.linspace(0.3, 2, WIDTH)
    x[:, 0] += 3 * (labels - 0.5)
    other = where == 1
    x[other] = x[other] @ (np.eye(WIDTH) if turn is None else turn) + shift_by
    return x.astype(np.float32), field(labels, where)


def field(labels: np.ndarray, where: np.ndarray, groups: np.ndarray | None = None) -> Compared:
    return Compared(
        by="site", names=tuple("abcdef"[: where.max() + 1]), classes=("cat", "dog"),
        rows=np.arange(len(labels)), domains=where, labels=labels, groups=groups,
        grouped="" if groups is None else "plate", notes=(),
    )  # fmt: skip


def images(labels: np.ndarray, splits: np.ndarray | None = None) -> ArrayImages:
    return ArrayImages(np.zeros((len(labels), 4, 4, 1), np.uint8), labels, ("cat", "dog", "owl"), splits)


def settled(labels, where, values=("a", "b"), groups=None) -> Compared:
    plates = None if groups is None else Groups("plate", groups)
    return domains.comparable(images(labels), sources.Domains("site", values, where), plates)


# ---------------------------------------------------------------- alignment
def covariance(x: np.ndarray) -> np.ndarray:
    return np.cov(x, rowvar=False)


def test_recoloured_features_have_the_targets_covariance():
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(n, 5)) @ rng.normal(size=(5, 5)) for n in (80, 50))
    x, y = x - x.mean(0), y - y.mean(0)
    changed = align.recoloured(x, align.Covariance.of(x, 0), align.Covariance.of(y, 0))
    assert covariance(changed) == pytest.approx(covariance(y), abs=1e-10)


@pytest.mark.parametrize("n", [12, 200], ids=["fewer images than dimensions", "more"])
def test_powers_of_a_covariance_are_those_of_its_matrix(n):
    """With the penalty, of a full rank: from one decomposition of the smaller Gram matrix."""
    x = np.random.default_rng(n).normal(size=(n, 30)) + 5
    values, vectors = np.linalg.eigh(covariance(x) + 0.7 * np.eye(30))
    for exponent in (-0.5, 0.5):
        expected = x @ (vectors * values**exponent) @ vectors.T
        assert align.Covariance.of(x, 0.7).power(x, exponent) == pytest.approx(expected, rel=1e-9)


def test_coral_maps_the_regularised_covariance_onto_the_targets():
    """C_S^(-1/2) (C_S) C_S^(-1/2) = I, so (cov + I) of the source becomes (cov + I) of the target."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(40, 8)) * np.arange(1, 9), rng.normal(size=(60, 8))
    source, target = align.Covariance.of(x), align.Covariance.of(y)
    root = align.recoloured(np.eye(8), source, target)
    assert root.T @ (covariance(x) + np.eye(8)) @ root == pytest.approx(covariance(y) + np.eye(8), abs=1e-9)


@pytest.mark.parametrize("name", align.NAMES)
def test_a_domain_aligned_with_itself_is_only_standardised(name):
    x = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    train, test = align.NAMES[name](x, np.arange(50) % 2, x, x)
    assert name == "clusters" or train == pytest.approx(test, abs=1e-5)
    assert test.mean(0) == pytest.approx(np.zeros(4), abs=1e-5)


def test_alignment_mends_a_moved_and_stretched_domain():
    """The other domain has another mean and other deviations: at chance before, solved after."""
    x, about = toy(shift_by=6.0, turn=np.diag(np.linspace(1, 4, WIDTH)))
    pairs, _ = domains.pairs_of(images(about.labels), about, 0)
    for name, least in (("", 0.0), *((name, 0.9) for name in align.NAMES)):
        right = shift.answers(x, about, pairs, protocol="knn", alignment=name).right
        across = right[0, about.domains == 1].mean()
        assert across >= least
        assert name or across < 0.6


def test_classes_are_moved_onto_the_clusters_that_start_from_them():
    """Each class moves elsewhere, which no covariance tells: clusters find them, and CORAL does not."""
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 3
    centres = 6 * np.eye(3, 8)
    moved = centres + 4 * np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]]) @ np.eye(3, 8)
    source, target, test = (c[labels] + rng.normal(size=(90, 8)) for c in (centres, moved, moved))
    train, other = align.clusters(source, labels, target, test)
    gaps = [
        np.abs(align.class_means(each, labels, 3) - align.class_means(other, labels, 3)).max()
        for each in (train, align.coral(source, labels, target, test)[0])
    ]
    assert gaps[0] < 0.5 < gaps[1]


def test_clusters_are_those_of_the_nearest_centre_and_empty_ones_stay():
    x = np.array([[1, 0.1], [1, -0.1], [0.1, 1], [-0.1, 1]])
    centres = np.array([[1.0, 0.5], [0.2, 1.0], [-1.0, -1.0], [np.nan, np.nan]])
    assert align.clustered(x, centres).tolist() == [0, 0, 1, 1]
    assert align.class_means(x, np.array([0, 0, 1, 1]), 3)[:2] == pytest.approx(np.eye(2))


def test_one_image_has_no_covariance():
    with pytest.raises(ValueError, match="two images or more"):
        align.Covariance.of(np.ones((1, 3)))


# ---------------------------------------------------------------- answers
@pytest.mark.parametrize(
    ("protocol", "alignment"), [("linear", "coral"), *(("knn", name) for name in ("", *align.NAMES))]
)
def test_no_label_of_a_target_changes_an_answer(protocol, alignment, few_penalties):
    x, about = toy(20, shift_by=1.0, turn=rotation())
    pairs, _ = domains.pairs_of(images(about.labels), about, 0)
    mixed = about.labels.copy()
    rows = np.flatnonzero(about.domains == 1)
    mixed[rows] = np.random.default_rng(1).permutation(mixed[rows])
    one, other = (
        shift.answers(x, each, pairs, protocol=protocol, alignment=alignment)
        for each in (about, about._replace(labels=mixed))
    )
    assert (one.predicted[0, rows] == other.predicted[0, rows]).all()
    assert one.chosen["a"] == other.chosen["a"]
    assert (one.predicted[1, rows] != other.predicted[1, rows]).any()


def test_a_probe_never_trains_on_what_it_is_tested_on():
    """With labels by chance, a probe that had seen the image would know its label."""
    rng = np.random.default_rng(0)
    about = field(rng.integers(2, size=200), np.repeat([0, 1], 100))
    x = np.tile(rng.normal(size=(200, 40)), (1, 1)).astype(np.float32)
    pairs, words = domains.pairs_of(images(about.labels), about, 0)
    right = shift.answers(x, about, pairs, protocol="knn").right
    assert not np.isnan(right).any()
    assert right.mean() == pytest.approx(0.5, abs=0.1)
    assert words == "5 folds: every image is tested once"


def test_whole_groups_are_on_one_side_in_all_domains():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 6)
    about = field(np.tile([0, 1], 120), np.tile([0, 0, 0, 1, 1, 1], 40), rng.permutation(40)[groups])
    pairs, words = domains.pairs_of(images(about.labels), about, 0)
    for fit, held_out in pairs:
        assert not np.intersect1d(about.units[fit], about.units[held_out]).size
    assert len(np.concatenate([held_out for _, held_out in pairs])) == 240
    assert words == "5 folds, none of which divides a plate: every image is tested once"


def test_the_collections_own_split_is_kept():
    about = field(np.tile([0, 1], 20), np.repeat([0, 1], 20))
    splits = np.where(np.arange(40) % 10 < 6, "train", "test")
    ((fit, held_out),), words = domains.pairs_of(images(about.labels, splits), about, 0)
    assert (splits[fit] == "train").all()
    assert (splits[held_out] == "test").all()
    assert words == "the collection's own split"
    divided = about._replace(groups=np.arange(40) // 10, grouped="plate")
    assert "(4 groups on both sides)" in domains.pairs_of(images(about.labels, splits), divided, 0)[1]
    groups = about._replace(groups=np.arange(40) // 4, grouped="plate")
    assert len(domains.pairs_of(images(about.labels, splits), groups, 0, asked=True)[0]) == 5


# ---------------------------------------------------------------- figures
def figured(right: np.ndarray, about: Compared, **more):
    every = {("trained", ""): right} | {("trained", name): value for name, value in more.items()}
    answered = {
        key: shift.Answers(value.astype(float), np.zeros_like(value), {}) for key, value in every.items()
    }
    return shift.figures(answered, about)


def test_gap_and_means_are_those_of_the_matrix():
    about = field(np.zeros(8, int), np.repeat([0, 1], 4))
    right = np.array([[1, 1, 1, 0, 1, 0, 0, 0], [1, 1, 0, 0, 1, 1, 1, 1]])
    ((found,), gains) = figured(right, about)
    assert found.accuracy.tolist() == [[0.75, 0.25], [0.5, 1.0]]
    assert found.within.value == 0.875
    assert found.across.value == 0.375
    assert found.gap.value == 0.5
    assert [each.value for each in found.from_others] == [0.5, 0.25]
    assert found.worst == 1
    assert not gains
    low, high = found.gap.interval95
    assert low < 0.5 < high


def test_intervals_are_those_of_the_binomial_and_open_where_all_is_right():
    about = field(np.zeros(800, int), np.repeat([0, 1], 400))
    rng = np.random.default_rng(0)
    right = np.stack([np.ones(800, int), rng.permutation(np.arange(800) % 2)])
    ((found,), _) = figured(right, about)
    assert found.intervals95[0, 0].tolist() == pytest.approx([0.025 ** (1 / 400), 1])
    low, high = found.intervals95[1, 0]
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.25 / 400), rel=0.1)


def test_images_of_a_group_are_drawn_together():
    """Ten images of a group that are right or wrong together are worth as much as one."""
    rng = np.random.default_rng(0)
    labels, where = np.zeros(1000, int), np.repeat([0, 1], 500)
    once = rng.integers(2, size=(2, 100))
    right = np.repeat(once, 10, axis=1)
    ((alone,), _) = figured(right, field(labels, where))
    ((grouped,), _) = figured(right, field(labels, where, np.arange(1000) // 10))
    widths = [float(np.diff(each.across.interval95)[0]) for each in (grouped, alone)]
    assert widths[0] / widths[1] == pytest.approx(np.sqrt(10), rel=0.25)


def test_a_gain_is_paired():
    """An alignment that mends the same ten images of a hundred: its interval is that of those alone."""
    about = field(np.zeros(200, int), np.repeat([0, 1], 100))
    before = np.zeros((2, 200), int)
    before[:, ::2] = 1
    after = before.copy()
    after[0, 101:121:2] = 1
    after[1, 1:21:2] = 1
    (_, (gain,)) = figured(before, about, coral=after)
    assert gain.of == ("trained", "coral")
    assert gain.against == ("trained", "")
    assert gain.across.value == pytest.approx(0.1)
    assert gain.cells.tolist() == [[0, pytest.approx(0.1)], [pytest.approx(0.1), 0]]
    low, high = gain.across.interval95
    assert 0.05 < low < 0.1 < high < 0.15


# ---------------------------------------------------------------- what can be compared
def test_only_classes_of_all_domains_are_compared():
    labels = np.array([0, 0, 1, 1, 2, 2, 0, 0, 1, 1, 2, -1, 0, 1])
    where = np.array([0] * 6 + [1] * 6 + [2, 2])
    found = settled(labels, where, ("x", "y", "z"))
    assert (found.names, found.classes) == (("x", "y"), ("cat", "dog"))
    assert found.rows.tolist() == [0, 1, 2, 3, 6, 7, 8, 9]
    assert found.notes == (
        "left out, with fewer than two classes: z",
        "left out, not in all domains: 1 class (owl)",
        "left out, without label or domain, or of these: 6 images",
    )


def test_domains_without_classes_in_common_are_refused():
    with pytest.raises(ValueError, match=r"two classes in common.*x 1 and y 1; in common: 0"):
        settled(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1]), ("x", "y"))
    with pytest.raises(ValueError, match=r"two groups \(plate\) or more in each"):
        settled(np.tile([0, 0, 1, 1], 2), np.repeat([0, 1], 4), ("x", "y"), np.repeat([0, 1], 4))


def test_unknown_names_are_refused():
    names = ", ".join(align.NAMES)
    for protocol, name, says in (("svm", None, "linear, knn"), ("knn", "dann", names)):
        with pytest.raises(ValueError, match=says):
            domains.check(protocol, name)


def test_the_result_says_what_was_chosen_and_proves_no_more_than_its_intervals(few_penalties):
    x, about = toy(16, shift_by=6.0, turn=np.diag(np.linspace(1, 4, WIDTH)))
    noise = np.random.default_rng(0).normal(size=x.shape).astype(np.float32)
    what = About(model="m", digest="d", data="cells", features="features")
    found = measured(
        images(about.labels), about, {"pixels": noise, "trained": x}, what, alignment="standardise"
    )
    assert [found.title(each) for each in found.matrices] == ["raw pixels", "trained", "trained, standardise"]
    assert "chosen by accuracy on images held out of the source's train part" in found.protocol()
    assert found.verdict().startswith("Accuracy falls by ")
    assert "Standardise against no alignment: +" in found.verdict()
    assert found.verdict().endswith("across domains, better.")
    content = found.to_json()
    assert [each["gap"]["value"] for each in content["matrices"]] == [m.gap.value for m in found.matrices]
    assert found.table(found.matrix())[1][0][0] == "trained on a"


@pytest.mark.parametrize("sizes", [[3, 3, 3], [3, 9, 9]], ids=["few groups everywhere", "in one domain"])
def test_a_single_fold_is_tested_only_if_it_has_all_domains(sizes, monkeypatch):
    """With three visits to a site, two of five folds have none of it."""
    monkeypatch.setattr(domains, "FEW", 10)
    where = np.repeat(np.arange(3), 10 * np.array(sizes))
    labels, visits = np.tile([0, 1], len(where) // 2), np.arange(len(where)) // 10
    compared = field(labels, where, visits)
    pairs, _ = domains.pairs_of(images(labels), compared, seed=0)
    tested = domains.tested(pairs)
    assert set(where[tested]) == {0, 1, 2}
    assert len(pairs) == 1 or len(tested) == len(where)
    found = measured(
        images(labels), compared, {"trained": np.random.default_rng(0).normal(size=(len(where), 4))},
        About(model="m", digest="d", data="cells", features="features"), protocol="knn",
    )  # fmt: skip
    assert np.isfinite(found.matrix().accuracy).all()
    assert "a has too few (3 groups by plate)" in domains.few_groups(compared, np.arange(len(where)))


def test_two_groups_of_a_domain_suffice(few_penalties):
    """One is tested and one trained on, so that the penalty is chosen by image, and a note says so."""
    where, plates = np.repeat([0, 1], 40), np.arange(80) // 20
    labels = np.tile([0, 1], 40)
    x = (np.random.default_rng(0).normal(size=(80, 3)) + 3 * labels[:, None]).astype(np.float32)
    what = About(model="m", digest="d", data="cells", features="features")
    found = measured(images(labels), field(labels, where, plates), {"trained": x}, what)
    assert found.matrix().accuracy.min() > 0.8
    assert found.notes[-1].startswith(
        "no class of a and b has train images in two groups by plate: penalties"
    )
