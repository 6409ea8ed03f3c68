"""The parts of the search for duplicates in closed form: hashes, alignment, tails, groups."""

import numpy as np
import pytest
import scipy.fft
import scipy.stats

from omma.curation.duplicates import align, calibrate, groups, hashes, rule
from omma.curation.duplicates.groups import Quality
from omma.ops.nearest import unit


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    """Twelve smooth random pictures [64, 64] of mean 0 and deviation 1."""
    rng = np.random.default_rng(0)
    waves = rng.normal(size=(12, 64, 64)) / (1 + np.add.outer(np.arange(64), np.arange(64))) ** 1.2
    made = scipy.fft.idctn(waves, axes=(1, 2), norm="ortho")
    made -= made.mean(axis=(1, 2), keepdims=True)
    return (made / made.std(axis=(1, 2), keepdims=True)).astype(np.float32)


# ---------------------------------------------------------------- hashes
def test_orientations_are_hashes_of_flipped_and_turned_pictures(pictures: np.ndarray) -> None:
    small = pictures[:, ::2, ::2]
    all_hashes = hashes.perceptual_hashes(small)
    flips = [small, small[:, :, ::-1], small[:, ::-1], small[:, ::-1, ::-1]]
    for k, each in enumerate([*flips, *(flip.transpose(0, 2, 1) for flip in flips)]):
        own = hashes.perceptual_hashes(each)[:, 0]
        # rounding may tip a coefficient that lies at the median
        assert (np.bitwise_count(own ^ all_hashes[:, k]) <= 2).all(), k
    turned = hashes.perceptual_hashes(np.rot90(small, 1, (1, 2)))
    assert (hashes.distances(all_hashes, turned) <= 2).all()
    assert (hashes.distances(all_hashes[:-1], all_hashes[1:]) > 8).all()


def test_half_of_the_bits_are_set(pictures: np.ndarray) -> None:
    assert (np.bitwise_count(hashes.perceptual_hashes(pictures)) == hashes.BITS // 2).all()


@pytest.mark.parametrize("numba", [True, False], ids=["numba", "arrays"])
@pytest.mark.parametrize("n", [0, 1, 2, 70])
def test_near_pairs_equal_all_distances(n: int, numba: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashes, "compiles", lambda: numba)
    monkeypatch.setattr(hashes, "BLOCK", 3)  # of which some have no room for all their pairs
    monkeypatch.setattr(hashes, "STRIP", 8)
    rng = np.random.default_rng(n)
    values = rng.integers(0, 2**64, (n, 8), dtype=np.uint64) & np.uint64(0xFFFF)
    blocks = list(hashes.near_pairs(values, 4))
    got = {(i, j): d for block in blocks for i, j, d in zip(*(each.tolist() for each in block))}
    expected = {}
    for i in range(n):
        for j in range(i + 1, n):
            least = min((int(values[i, 0]) ^ int(other)).bit_count() for other in values[j])
            if least <= 4:
                expected[i, j] = least
    assert got == expected
    assert list(got) == sorted(got)
    assert n < 70 or len(got) > 12  # more than the room of a block


def test_a_picture_without_content_is_flat() -> None:
    noise = np.random.default_rng(0).integers(0, 2, (40, 40, 3))
    assert np.isnan(hashes.picture(np.full((40, 40, 3), 77, np.uint8))).all()
    assert np.isnan(hashes.picture(noise.astype(np.uint8))).all()
    assert np.isnan(hashes.picture(np.full((40, 40, 2), 1000.0, np.float32))).all()
    assert np.isnan(hashes.picture(np.full((4, 4, 1), np.nan, np.float32))).all()
    assert not np.isnan(hashes.picture((noise * 50).astype(np.uint8))).any()


# ---------------------------------------------------------------- alignment
def test_a_picture_agrees_with_its_copies_and_not_with_others(pictures: np.ndarray) -> None:
    assert align.agreement(pictures, pictures) == pytest.approx(1, abs=1e-3)
    assert align.agreement(pictures, -3 * pictures[:, :, ::-1] + 5).max() < 0.9  # a negative is no copy
    assert align.agreement(pictures, 3 * pictures.transpose(0, 2, 1) + 5) == pytest.approx(1, abs=1e-3)
    window = pictures[:, 9:57, 4:52]  # 48 x 48: 56 % of the area
    part = window.repeat(4, axis=1).repeat(4, axis=2).reshape(12, 64, 3, 64, 3).mean(axis=(2, 4))
    assert align.agreement(pictures, part).min() > 0.8
    assert align.agreement(part, pictures).min() > 0.8
    assert np.abs(align.agreement(pictures, np.roll(pictures, 1, axis=0))).max() < 0.5


def test_agreement_of_nothing_and_of_blank_pictures(pictures: np.ndarray) -> None:
    assert align.agreement(pictures[:0], pictures[:0]).shape == (0,)
    blank = np.zeros_like(pictures)
    assert np.abs(align.agreement(pictures, blank)).max() < 0.1
    assert np.abs(align.agreement(blank, blank)).max() < 0.1


# ---------------------------------------------------------------- thresholds
def test_the_tail_of_an_exponential_is_exact() -> None:
    """Its excesses are exponential again: shape 0, and the quantile is base - scale * log(rate)."""
    n = 500
    values = -np.log1p(-(np.arange(n) + 0.5) / n)
    assert calibrate.tail(values, 1e-3) == pytest.approx(-np.log(1e-3), rel=0.05)


@pytest.mark.parametrize(
    "law", [scipy.stats.norm(), scipy.stats.beta(20, 20), scipy.stats.t(5)], ids=["normal", "beta", "t5"]
)
def test_the_tail_has_the_rate_that_was_asked_for(law) -> None:
    rates = []
    for seed in range(5):
        values = law.rvs(500_000, random_state=seed)
        top = np.sort(values)[-500:]
        rates.append(law.sf(calibrate.tail(top, 1e-5 * len(values) / len(top))))
    assert 0.5e-5 < np.median(rates) < 2e-5


def test_the_tail_of_ties_is_their_value() -> None:
    assert calibrate.tail(np.full(9, 0.7), 1e-3) == pytest.approx(0.7)
    assert calibrate.tail(np.array([0.7]), 1e-3) == pytest.approx(0.7)


@pytest.mark.parametrize("doubled", [0, 60])
def test_the_threshold_of_gaussian_vectors_has_its_rate(
    doubled: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cosines in 32 dimensions follow a beta law; duplicates must not move the threshold."""
    rng = np.random.default_rng(1)
    n, rate = 600, 1e-4
    vectors = rng.normal(size=(n, 32)).astype(np.float32)
    source = np.arange(n)
    source[n - doubled :] = np.arange(doubled)  # each a copy of another
    vectors = vectors[source] + 0.1 * rng.normal(size=vectors.shape).astype(np.float32)
    perceptual = rng.integers(0, 2**63, (n, 8), dtype=np.uint64)
    # pictures say which images are the same; they are not looked at here
    monkeypatch.setattr(rule.align, "agreement", lambda a, b: np.where(a[:, 0, 0] == b[:, 0, 0], 0.9, 0.1))
    some = rule.Sample(np.arange(n), perceptual, unit(vectors))
    chosen, pairs, aside = rule.chosen(some, lambda rows: source[rows][:, None, None], rate, n, seed=0)
    assert aside == doubled
    assert pairs == (n - doubled) * (n - doubled - 1) // 2
    law = scipy.stats.beta(15.5, 15.5, loc=-1, scale=2)
    assert 0.4 < law.sf(chosen.threshold) / (rate / 2) < 2.5
    assert chosen.loose < chosen.threshold
    assert chosen.hash_limit < chosen.hash_loose


def test_few_images_have_no_thresholds() -> None:
    some = rule.Sample(np.arange(5), np.zeros((5, 8), np.uint64), np.eye(5, dtype=np.float32))
    chosen, pairs, _ = rule.chosen(some, lambda rows: rows, 1e-5, 5, seed=0)
    assert chosen.threshold is None
    assert pairs == 0


# ---------------------------------------------------------------- groups
def test_a_chain_is_not_one_group() -> None:
    """0 - 1 - 2 - 3, where 0 and 2 are far apart: what goes is a duplicate of what stays."""
    quality = {k: Quality(10, 10 - k) for k in range(4)}  # 0 is the best
    found = groups.groups([(0, 1), (1, 2), (2, 3)], quality)
    assert [(group.kept, group.others) for group in found] == [(0, (1,)), (2, (3,))]


def test_the_centre_of_a_star_keeps_it_together() -> None:
    quality = {k: Quality(10, 20 if k == 2 else 10) for k in range(4)}
    found = groups.groups([(0, 2), (1, 2), (2, 3)], quality)
    assert [(group.kept, group.others) for group in found] == [(2, (0, 1, 3))]


@pytest.mark.parametrize(
    ("qualities", "kept", "why"),
    [
        ([Quality(30, 40, 5, 1), Quality(50, 60, 4, 9)], 1, "the largest (60 x 50)"),
        ([Quality(30, 40, 5, 1), Quality(40, 30, 6, 9)], 1, "the least compressed"),
        ([Quality(30, 40, 5, 7), Quality(30, 40, 5, 3)], 1, "the oldest"),
        ([Quality(30, 40, 5, 7), Quality(30, 40, 5, 7)], 0, "the first"),
        ([Quality(30, 40), Quality(30, 40)], 0, "the first"),
    ],
    ids=["largest", "least compressed", "oldest", "first", "first of arrays"],
)
def test_which_image_is_kept_and_why(qualities: list[Quality], kept: int, why: str) -> None:
    (group,) = groups.groups([(0, 1)], dict(enumerate(qualities)))
    assert (group.kept, group.why) == (kept, why)
    assert group.others == (1 - kept,)


def test_protected_images_never_go() -> None:
    quality = {k: Quality(10, 10 + k) for k in range(4)}  # 3 is the largest
    found = groups.groups([(0, 1), (0, 3), (1, 3), (2, 3)], quality, protected=[0, 1])
    assert [(group.kept, group.why, group.others) for group in found] == [(1, "of the test split", (3,))]


def test_images_that_are_the_same_go_together() -> None:
    """1, 4 and 5 are the same, 2 looks like them; 5 is the best, and 6 is far from it but near 2."""
    quality = {k: Quality(10, 10 + 10 * (k == 5)) for k in range(7)}
    pairs, classes = [(1, 2), (2, 6)], [(1, 4, 5)]
    found = groups.groups(pairs, quality, classes=classes)
    assert [(group.kept, group.others) for group in found] == [(5, (1, 2, 4))]
    found = groups.groups(pairs, quality, protected=[4, 5], classes=classes)
    assert [(group.kept, group.others) for group in found] == [(5, (1, 2))]
    found = groups.groups(pairs, quality, protected=[2], classes=classes)
    assert [(group.kept, group.others) for group in found] == [(2, (1, 4, 5, 6))]
