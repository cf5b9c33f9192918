"""The nearest level, against trying them all."""

import numpy as np
import pytest
from gguf import quants

from tqgguf.kernels.search import is_uniform, nearest, reciprocal, snap

GRIDS = {
    "uniform": np.arange(-8, 8, dtype=np.float32),
    "from zero": np.arange(32, dtype=np.float32),
    "bell": np.array(quants.IQ4_NL.kvalues, np.float32),
    "powers": np.array([-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12], np.float32),
}


@pytest.mark.parametrize("grid", GRIDS)
def test_nearest_is_the_nearest(grid):
    levels = GRIDS[grid]
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (32, 50)).astype(np.float32)
    step = rng.uniform(0.01, 0.3, 50).astype(np.float32)
    offset = rng.normal(0, 0.1, 50).astype(np.float32)
    distance = np.abs(step[:, None] * levels + offset[:, None] - x[..., None])
    chosen = np.take_along_axis(
        distance, nearest(x, step, offset, levels)[..., None].astype(int), -1
    )
    assert (chosen[..., 0] <= distance.min(axis=-1) * 1.00001 + 1e-6).all()


@pytest.mark.parametrize("grid", GRIDS)
def test_snap_agrees_with_nearest(grid):
    levels = GRIDS[grid]
    u = np.random.default_rng(1).uniform(levels[0], levels[-1], (16, 40)).astype(np.float32)
    out = np.empty_like(u)
    snap(u, levels, out)
    ones = np.ones(40, np.float32)
    np.testing.assert_array_equal(out, levels[nearest(u, ones, 0 * ones, levels)])


def test_a_step_of_zero_picks_the_level_nearest_zero():
    zero = np.zeros(4, np.float32)
    x = np.full((8, 4), 3.0, np.float32)
    for levels in GRIDS.values():
        codes = nearest(x, zero, zero, levels)
        assert (np.abs(levels[codes]) == np.abs(levels).min()).all()


def test_reciprocal_of_nothing_is_nothing():
    values = np.array([0, 1e-45, -1e-39, 2, -4], np.float32)
    np.testing.assert_array_equal(reciprocal(values), [0, 0, 0, 0.5, -0.25])
    assert reciprocal(values).dtype == np.float32


def test_what_is_uniform():
    assert {name: is_uniform(levels) for name, levels in GRIDS.items()} == {
        "uniform": True,
        "from zero": True,
        "bell": False,
        "powers": False,
    }
