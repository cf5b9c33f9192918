"""The random rotations keep lengths, have an inverse, and mix even a vector with one entry."""

import numpy as np
import pytest

from tqgguf.errors import ShapeError
from tqgguf.turboquant.rotations import rotation

KINDS = ("hadamard", "dense")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [2, 64, 256])
def test_a_rotation_is_orthogonal_and_its_inverse_undoes_it(kind, dim):
    turn = rotation(kind, dim, seed=5)
    matrix = turn.forward(np.eye(dim, dtype=np.float32))
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(dim), atol=1e-5)
    x = np.random.default_rng(0).standard_normal((7, dim)).astype(np.float32)
    np.testing.assert_allclose(turn.inverse(turn.forward(x)), x, atol=1e-5)
    np.testing.assert_allclose(turn.forward(x), x @ matrix, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides(kind):
    x = np.random.default_rng(0).standard_normal((3, 32)).astype(np.float32)
    one, again, other = (rotation(kind, 32, seed=s).forward(x) for s in (1, 1, 2))
    assert (one == again).all()
    assert np.abs(one - other).max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_one_entry_becomes_gaussian_like(kind):
    """Kurtosis 3 as for Gaussian entries; a single Hadamard round would give 1."""
    spike = np.zeros((1, 128), np.float32)
    spike[0, 17] = 1
    y = np.concatenate([rotation(kind, 128, seed=s).forward(spike) for s in range(80)])
    assert np.mean(y**4) / np.mean(y**2) ** 2 == pytest.approx(3, abs=0.15)


def test_the_dense_rotation_is_uniform_over_rotations_and_reflections():
    """Haar measure: every entry has mean 0, and the trace has variance 1, whatever LAPACK does."""
    traces = [np.trace(rotation("dense", 6, seed=s).forward(np.eye(6))) for s in range(4000)]
    assert np.mean(traces) == pytest.approx(0, abs=0.07)
    assert np.var(traces) == pytest.approx(1, abs=0.1)


def test_a_dimension_that_does_not_fit_names_the_next_that_do():
    with pytest.raises(ShapeError, match=r"dim 96: the Hadamard.* use 64 or 128, or the dense"):
        rotation("hadamard", 96, seed=0)
