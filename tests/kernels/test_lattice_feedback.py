"""Feedback by octets: what it saves, and that its blocks are what it says they are."""

import ggml
import numpy as np
import pytest

from tqgguf.formats import FORMATS, LatticeFormat
from tqgguf.kernels import lattice_feedback
from tqgguf.kernels.feedback import factored, output_error

LATTICES = [name for name, fmt in FORMATS.items() if isinstance(fmt, LatticeFormat)]


def correlated(n_in, seed, rank=None):
    """Second moments of inputs that share directions, as a network's do."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((4 * n_in, n_in)) + 3 * rng.standard_normal(
        (4 * n_in, 8)
    ) @ rng.standard_normal((8, n_in))
    x = x[:rank]
    return x.T @ x / len(x)


def weights(n_in, n, seed=0):
    return np.random.default_rng(seed).standard_normal((n_in, n), dtype=np.float32)


def plain(w, fmt, h):
    """Without feedback: each block on its own, weighed by H's diagonal."""
    values = []
    for b in range(0, len(w), 256):
        weight = np.repeat(np.diagonal(h)[b : b + 256, None], w.shape[1], axis=1)
        blocks = fmt.encode(w[b : b + 256], weight.astype(np.float32))
        data = blocks.view(np.uint8).reshape(w.shape[1], -1)
        values.append(ggml.dequantize(data, fmt.name).T)
    return np.concatenate(values)


@pytest.mark.slow
@pytest.mark.parametrize("name", LATTICES)
def test_feedback_and_sweeps_lower_the_outputs_error(name):
    fmt, w = FORMATS[name], weights(512, 48)
    moments = factored(correlated(512, seed=1))
    errors = [output_error(w, plain(w, fmt, moments.h), moments.h).sum()]
    for sweeps in (0, 1, 3):
        _, values = lattice_feedback.round_matrix(w, moments, fmt, sweeps=sweeps)
        errors.append(output_error(w, values, moments.h).sum())
    assert errors[1] < 0.8 * errors[0]
    assert errors[2] < 0.97 * errors[1]
    assert errors[3] < errors[2]


@pytest.mark.slow
@pytest.mark.parametrize("name", LATTICES)
def test_the_reader_sees_the_values_returned(name):
    fmt, w = FORMATS[name], weights(512, 16, seed=2)
    moments = factored(correlated(512, seed=3))
    blocks, values = lattice_feedback.round_matrix(w, moments, fmt, sweeps=2)
    data = np.ascontiguousarray(blocks.T).view(np.uint8).reshape(16, -1)
    np.testing.assert_allclose(ggml.dequantize(data, name).T, values, rtol=0, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", LATTICES)
def test_few_inputs_and_none_are_no_obstacle(name):
    fmt, w = FORMATS[name], weights(256, 16, seed=4)
    for h in (correlated(256, seed=5, rank=20), np.zeros((256, 256))):
        _, values = lattice_feedback.round_matrix(w, factored(h), fmt, sweeps=1)
        assert ((values - w) ** 2).mean() < 0.5


def test_rows_of_zeros_stay_zero():
    fmt, w = FORMATS["IQ2_XXS"], weights(256, 16, seed=6)
    w[:, 3] = 0
    _, values = lattice_feedback.round_matrix(w, factored(correlated(256, seed=7)), fmt, sweeps=2)
    assert not values[:, 3].any()
