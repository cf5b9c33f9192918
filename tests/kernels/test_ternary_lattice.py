"""The lattice of IQ1_S and IQ1_M against exhaustive search."""

import numpy as np
import pytest

from tqgguf.formats import FORMATS

LATTICES = {name: FORMATS[name].lattice for name in ("IQ1_S", "IQ1_M")}
SCALE = 1.3  # the best one of N(0, 1), about


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", LATTICES)
def test_nearest_is_within_one_percent_of_exhaustive_search(name, weighted):
    lattice, rng = LATTICES[name], np.random.default_rng(0)
    x = rng.standard_normal((8, 500), dtype=np.float32)
    w = rng.lognormal(0, 1, x.shape).astype(np.float32) if weighted else np.ones_like(x)
    scale = np.full((1, 500), SCALE, np.float32)
    scale[:, ::2] *= -1 if lattice.shared_shift else 1
    codes = lattice.nearest(x, scale, w if weighted else None)
    error = w[None] * (np.float32(SCALE) * lattice.points[:, :, None] - x[None]) ** 2
    distance = error.sum(axis=1).reshape(2, -1, 500).min(axis=1)  # of points shifted up, and down
    best = np.where(scale[0] < 0, *distance[::-1]) if lattice.shared_shift else distance.min(axis=0)
    ours = (w * (lattice.decode(codes, scale) - x) ** 2).sum(axis=0)
    assert (ours >= best - 1e-4).all()
    assert ours.sum() <= 1.01 * best.sum()


@pytest.mark.parametrize("name", LATTICES)
def test_steps_and_multiples_undo_each_other(name):
    lattice = LATTICES[name]
    steps = np.arange(16 if lattice.shared_shift else 8, dtype=np.uint8)
    np.testing.assert_array_equal(lattice.steps(lattice.multiples(steps)), steps)
