"""Scales by least squares, against brute force and against the definition of the error."""

import numpy as np
import pytest
from gguf import quants

from tqgguf.errors import WeightError
from tqgguf.formats import q4_0
from tqgguf.formats._candidates import IQ4_FACTORS, RANGES_4_BITS, RANGES_5_BITS
from tqgguf.kernels import scales
from tqgguf.kernels.search import reciprocal
from tqgguf.kernels.superblocks import affine_block, symmetric_block

INT4 = np.arange(-8, 8, dtype=np.float32)
BELL = np.array(quants.IQ4_NL.kvalues, np.float32)


def groups(size=32, n=60, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((size, n)).astype(np.float32)
    return x, rng.exponential(1, (size, n)).astype(np.float32)


def brute_force_error(x, w, levels, steps):
    """The least error per column over many steps, float64."""
    least = np.full(x.shape[1], np.inf)
    for step in steps:
        grid = step * levels.astype(np.float64)
        y = grid[np.abs(x[..., None] - grid).argmin(axis=-1)]
        least = np.minimum(least, (w * (x - y) ** 2).sum(axis=0))
    return least


@pytest.mark.parametrize(
    ("levels", "factors"), [(INT4, q4_0.FACTORS), (BELL, IQ4_FACTORS)], ids=["int4", "bell"]
)
@pytest.mark.parametrize(("weighted", "margin"), [(False, 1.01), (True, 1.04)])
def test_symmetric_is_close_to_the_best_of_many_steps(levels, factors, weighted, margin):
    x, w = groups()
    qx, qq = scales.symmetric(x, w if weighted else None, levels=levels, factors=factors)
    weight = w if weighted else np.ones_like(w)
    error = (weight * x**2).sum(axis=0) - qx * qx / qq
    unit = np.abs(x).max() / np.abs(levels[0])
    steps = np.concatenate([unit * np.linspace(0.3, 1.3, 150), -unit * np.linspace(0.3, 1.3, 150)])
    assert error.sum() <= margin * brute_force_error(x, weight, levels, steps).sum()


@pytest.mark.parametrize("weighted", [False, True])
def test_the_sums_give_the_error_in_closed_form(weighted):
    x, w = groups(seed=3)
    w = w if weighted else None
    sums = scales.affine(x, w, levels=15, ranges=RANGES_4_BITS)
    step, depth = scales.solve(sums)
    again = scales.requantize(x, w, sums, step, depth, levels=15)
    weight = np.ones_like(x) if w is None else w
    q = np.rint((x + depth) / step).clip(0, 15)
    error = (weight * (step * q - depth - x) ** 2).sum(axis=0)
    predicted = (
        (weight * x**2).sum(axis=0)
        + step * (step * again.qq - 2 * depth * again.q - 2 * again.qx)
        + depth * (depth * again.total + 2 * again.x)
    )
    np.testing.assert_allclose(predicted, error, rtol=2e-3)


def test_solve_is_a_minimum():
    x, w = groups(seed=4)
    sums = scales.affine(x, w, levels=15, ranges=RANGES_4_BITS)
    step, depth = scales.solve(sums)

    def error(s, o):
        linear = s * sums.qq - 2 * (o * sums.q + sums.qx)
        return (s * linear + o * (o * sums.total + 2 * sums.x)).sum()

    for ds, do in [(1.01, 1), (0.99, 1), (1, 1.01), (1, 0.99)]:
        assert error(step * ds, depth * do) > error(step, depth)


def test_groups_far_above_zero_have_no_depth():
    x = np.abs(groups(seed=5)[0]) + 5
    step, depth = scales.solve(scales.affine(x, None, levels=31, ranges=RANGES_5_BITS))
    assert (depth >= 0).all()
    assert (depth == 0).mean() > 0.4
    assert (np.abs(step * np.rint((x + depth) / step) - depth - x) <= step).all()


def test_more_candidates_never_hurt():
    x, w = groups(n=400, seed=6)
    gains = []
    for count in range(1, len(q4_0.FACTORS) + 1):
        qx, qq = scales.symmetric(x, w, levels=INT4, factors=q4_0.FACTORS[:count])
        gains.append((qx * qx / qq).sum())
    assert gains == sorted(gains)


@pytest.mark.parametrize("weighted", [False, True])
def test_blocks_scale_with_their_weights(weighted):
    x, w = groups(256, 20, seed=7)
    w = w if weighted else None
    small = affine_block(x, w, size=32, levels=15, top=63, ranges=RANGES_4_BITS)
    large = affine_block(x * 4, w, size=32, levels=15, top=63, ranges=RANGES_4_BITS)
    np.testing.assert_array_equal(small[0] * np.float16(4), large[0])
    np.testing.assert_array_equal(small[2], large[2])
    d, sc = symmetric_block(x, w, size=32, levels=BELL, low=-32, high=31, factors=(1.0, 0.9))
    d4, sc4 = symmetric_block(x * 4, w, size=32, levels=BELL, low=-32, high=31, factors=(1.0, 0.9))
    np.testing.assert_array_equal(d * np.float16(4), d4)
    np.testing.assert_array_equal(sc, sc4)


def test_to_half_refuses_what_would_be_infinite():
    assert scales.to_half(np.array([65519.0], np.float32)) == 65504
    with pytest.raises(WeightError, match=r"scale of 6.552e\+04, but float16 ends at 65504"):
        scales.to_half(np.array([1, 65520.0], np.float32))


def test_signed_peak():
    x = np.array([[1, -3, 0], [-2, 2, 0]], np.float32)
    np.testing.assert_array_equal(scales.signed_peak(x), [-2, -3, 0])
    np.testing.assert_array_equal(reciprocal(scales.signed_peak(x))[2], 0)
