"""The metrics against their definitions in float64."""

import math

import numpy as np
import pytest

from tqgguf.kernels import metrics


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 257)).astype(np.float32)
    return x, x + 0.1 * rng.standard_normal(x.shape).astype(np.float32)


def test_relative_mse_and_sqnr_are_their_definitions(pair):
    x, y = (a.astype(np.float64) for a in pair)
    expected = np.sum((x - y) ** 2) / np.sum(x**2)
    assert metrics.relative_mse(*pair) == pytest.approx(expected, rel=1e-6)
    assert metrics.sqnr_db(expected) == pytest.approx(-10 * math.log10(expected))
    assert metrics.row_energies(pair[0]) == pytest.approx(np.sum(x**2, axis=1), rel=1e-5)


def test_zeros_are_kept_exactly_and_lost_zeros_are_not():
    zeros, ones = np.zeros((2, 4), np.float32), np.ones((2, 4), np.float32)
    assert metrics.relative_mse(zeros, zeros) == 0
    assert metrics.relative_mse(zeros, ones) == math.inf
    assert metrics.sqnr_db(0) == math.inf
    assert metrics.cosine(0, 0, 0) == 1
    assert metrics.cosine(0, 0, 1) == 0
    assert math.isnan(metrics.kurtosis(ones))


def test_cosine_is_normalised():
    assert metrics.cosine(-6, 4, 9) == -1


def test_the_gap_is_zero_at_the_limit_and_six_db_a_bit():
    assert metrics.rate_distortion_gap_db(4**-3, 3) == pytest.approx(0, abs=1e-12)
    assert metrics.rate_distortion_gap_db(4**-3, 4) == pytest.approx(20 * math.log10(2))
    assert metrics.rate_distortion_gap_db(0, 4) == -math.inf


@pytest.mark.parametrize("scale", [1e-12, 1, 1e4])
def test_kurtosis_is_three_for_gaussian_and_nine_fifths_for_uniform_weights(scale):
    rng = np.random.default_rng(1)
    gaussian = scale * rng.standard_normal(400_000, dtype=np.float32)
    before = gaussian.copy()
    assert metrics.kurtosis(gaussian) == pytest.approx(3, abs=0.05)
    assert (gaussian == before).all()
    assert metrics.kurtosis(rng.random(400_000, dtype=np.float32) + 5) == pytest.approx(
        1.8, abs=0.01
    )


def test_histogram_counts_everything_once():
    x = np.array([-9, -1, -0.2, 0.1, 0.9, 50], np.float32)
    assert metrics.histogram(x, limit=1, bins=4).tolist() == [2, 1, 1, 2]


def test_the_standard_error_is_that_of_repeated_samples():
    rng = np.random.default_rng(2)
    energies = rng.gamma(3.0, size=400)
    errors = energies * rng.gamma(2.0, size=400)

    def sample():
        take = rng.choice(400, 100, replace=False)
        return errors[take], energies[take]

    samples = [sample() for _ in range(2000)]
    ratios = [e.sum() / x.sum() for e, x in samples]
    promised = np.mean([metrics.ratio_standard_error(e, x, population=400) for e, x in samples])
    assert promised == pytest.approx(np.std(ratios) / np.mean(ratios), rel=0.06)


def test_the_standard_error_of_everything_is_zero_and_of_one_part_unknown():
    one = np.ones(1)
    assert metrics.ratio_standard_error(one, one, population=1) == 0
    assert metrics.ratio_standard_error(one, one, population=2) == math.inf


def test_heavy_tailed_weights_are_as_described():
    x = metrics.heavy_tailed(400, 4096, seed=3)
    outliers = np.abs(x) > 0.2
    assert np.mean(outliers) == pytest.approx(20 / 4096, rel=0.03)
    assert 0.3 <= np.abs(x[outliers]).min() < 0.302
    assert 0.698 < np.abs(x[outliers]).max() <= 0.7
    assert np.mean(x[outliers] > 0) == pytest.approx(0.5, abs=0.02)
    assert x[~outliers].std() == pytest.approx(0.02, rel=0.01)
    assert (x == metrics.heavy_tailed(400, 4096, seed=3)).all()
    assert np.any(x != metrics.heavy_tailed(400, 4096, seed=4))
