"""Kernels on arrays of array_api_strict, which knows the standard and nothing else."""

import numpy as np
import pytest

from tests.card import CardArray, xp
from tests.kernels.test_feedback import correlated
from tqgguf.formats import FORMATS
from tqgguf.kernels import feedback
from tqgguf.kernels.arrays import to_numpy


def is_strict(x):
    return isinstance(x, CardArray)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q4_K", "IQ4_XS"])
def test_feedback_rounds_alike(name):
    rng = np.random.default_rng(11)
    w, h = rng.standard_normal((256, 12)).astype(np.float32), correlated(rng, 256)
    w[:, 3] = 0
    moments = feedback.factored(xp.asarray(h))
    assert is_strict(moments.factor.v)
    blocks, q = feedback.round_matrix(xp.asarray(w), moments, FORMATS[name], sweeps=1)
    expected_blocks, expected = feedback.round_matrix(
        w, feedback.factored(h), FORMATS[name], sweeps=1
    )
    assert is_strict(q)
    ours, theirs = (feedback.output_error(w, a, h).sum() for a in (to_numpy(q), expected))
    assert np.mean(blocks == expected_blocks) > 0.9  # a tie may fall either way
    assert ours == pytest.approx(theirs, rel=1e-2)


def test_moments_are_factored_and_solved_alike():
    rng = np.random.default_rng(12)
    h, b = correlated(rng, 300), rng.standard_normal((300, 5)).astype(np.float32)
    added, v = feedback.factor(xp.asarray(h), damping=0.1)
    expected_added, expected = feedback.factor(h, damping=0.1)
    assert added == expected_added
    np.testing.assert_allclose(to_numpy(v), expected, atol=1e-5)
    found = to_numpy(feedback.solve(v, feedback.inverses(v), xp.asarray(b)))
    solved = feedback.solve(expected, feedback.inverses(expected), b)
    np.testing.assert_allclose(found, solved, atol=1e-4)
