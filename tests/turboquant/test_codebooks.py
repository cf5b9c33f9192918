"""Lloyd-Max codebooks against closed forms, Lloyd's own iteration, and each other."""

import math

import numpy as np
import pytest

from tqgguf.errors import ShapeError
from tqgguf.turboquant import gaussian_codebook, sphere_codebook
from tqgguf.turboquant.codebooks import gaussian, sphere_coordinate


@pytest.mark.parametrize(("bits", "mse"), [(1, 0.36338), (2, 0.11748), (3, 0.03455), (4, 0.00950)])
def test_the_gaussian_codebooks_reach_the_published_errors(bits, mse):
    assert round(gaussian_codebook(bits).mse, 5) == mse


def test_one_bit_is_the_half_normal_mean():
    assert gaussian_codebook(1).levels[1] == pytest.approx(math.sqrt(2 / math.pi), abs=1e-14)
    assert gaussian_codebook(1).mse == pytest.approx(1 - 2 / math.pi, abs=1e-14)


def test_no_bits_keep_only_the_mean():
    assert gaussian_codebook(0).levels.tolist() == [0]
    assert sphere_codebook(0, 64).mse == pytest.approx(1 / 64)


@pytest.mark.parametrize("bits", [1, 2, 3, 5, 8])
def test_three_dimensions_have_a_uniform_coordinate(bits):
    """Archimedes: a coordinate of a point on the sphere is uniform, so its levels are too."""
    count = 2**bits
    expected = (2 * np.arange(count) + 1) / count - 1
    np.testing.assert_allclose(sphere_codebook(bits, 3).levels, expected, atol=1e-12)
    assert sphere_codebook(bits, 3).mse == pytest.approx(1 / (3 * count**2), rel=1e-9)


@pytest.mark.parametrize("dim", [2, 3, 5, 16, 129, 4096])
def test_the_sphere_law_integrates_to_one_with_the_right_moments(dim):
    """x = sin t, summed by the midpoint rule: what the closed forms must agree with."""
    law = sphere_coordinate(dim)
    widest = min(math.pi / 2, 13 / math.sqrt(dim))
    step = widest / 100_000
    x = np.sin(t := (np.arange(200_000) + 0.5) * step - widest)
    weight = law.density(x) * np.cos(t) * step
    assert weight.sum() == pytest.approx(1, abs=1e-6)
    assert (weight * x * x).sum() == pytest.approx(law.variance, rel=1e-5)
    at = np.array([-0.5, 0.1, 0.6]) / math.sqrt(dim)
    assert law.cdf(at) == pytest.approx([weight[x < a].sum() for a in at], abs=1e-4)
    assert law.moment(at) == pytest.approx([(weight * x)[x < a].sum() for a in at], abs=1e-4)


def test_the_sphere_law_is_that_of_sampled_unit_vectors():
    """Beta((d - 1)/2, (d - 1)/2): the law with d/2 would be off by 0.004 at this point."""
    dim = 8
    x = np.random.default_rng(0).standard_normal((400_000, dim))
    coordinate = x[:, 0] / np.linalg.norm(x, axis=1)
    for at in (-0.3, 0.2, 0.5):
        share = np.mean(coordinate < at)
        assert sphere_coordinate(dim).cdf(np.array([at]))[0] == pytest.approx(share, abs=0.0025)


@pytest.mark.slow
@pytest.mark.parametrize("dim", [4, 64, None])
def test_newton_ends_where_lloyds_iteration_does(dim):
    law = gaussian() if dim is None else sphere_coordinate(dim)
    found = gaussian_codebook(4) if dim is None else sphere_codebook(4, dim)
    levels = np.linspace(-0.9, 0.9, 16) * min(law.limit, 4 * math.sqrt(law.variance))
    for _ in range(6000):
        edges = np.concatenate([[-law.limit], (levels[1:] + levels[:-1]) / 2, [law.limit]])
        levels = np.diff(law.moment(edges)) / np.diff(law.cdf(edges))
    np.testing.assert_allclose(found.levels, levels, atol=1e-9 * law.limit)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("dim", [2, 7, 128, 100_000])
def test_every_codebook_is_symmetric_ascending_and_stationary(bits, dim):
    book = sphere_codebook(bits, dim)
    law = sphere_coordinate(dim)
    assert (book.levels == -book.levels[::-1]).all()
    assert (np.diff(book.levels) > 0).all()
    assert np.abs(book.levels).max() < law.limit
    np.testing.assert_allclose(book.boundaries, (book.levels[1:] + book.levels[:-1]) / 2)
    mass = np.diff(law.cdf(book.boundaries), prepend=0, append=1)
    means = np.diff(law.moment(book.boundaries), prepend=0, append=0) / mass
    np.testing.assert_allclose(means, book.levels, atol=1e-9 * law.limit)


def test_high_dimensions_tend_to_the_gaussian():
    for bits in (1, 2, 3, 4):
        assert 1e6 * sphere_codebook(bits, 10**6).mse == pytest.approx(
            gaussian_codebook(bits).mse, rel=1e-4
        )


@pytest.mark.parametrize("bits", [1, 3, 4, 8])
def test_encode_finds_the_nearest_level(bits):
    book = gaussian_codebook(bits)
    x = np.random.default_rng(bits).standard_normal((50, 40)).astype(np.float32)
    nearest = np.abs(x[..., None] - book.levels.astype(np.float32)).min(axis=-1)
    np.testing.assert_allclose(np.abs(x - book.decode(book.encode(x))), nearest, atol=1e-6)


def test_what_does_not_fit_is_refused_in_one_line():
    with pytest.raises(ShapeError, match="bits 9: a code has 0 to 8 bits"):
        gaussian_codebook(9)
    with pytest.raises(ShapeError, match="dim 1: a unit vector needs at least 2 coordinates"):
        sphere_codebook(2, 1)
