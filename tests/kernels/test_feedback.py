"""Rounding with error feedback: never worse than rounding alone, whatever the second moments."""

import numpy as np
import pytest

from tqgguf.errors import WeightError
from tqgguf.formats import FORMATS, ScalarFormat, dequantize, quantize
from tqgguf.kernels import feedback

SCALAR = [n for n, f in FORMATS.items() if isinstance(f, ScalarFormat)]


def correlated(rng, n_in, rank=None):
    """Second moments of inputs with a decaying spectrum."""
    x = rng.standard_normal((4 * n_in, rank or n_in)) * np.linspace(3, 0.1, rank or n_in)
    x = x @ rng.standard_normal((rank or n_in, n_in)) / np.sqrt(n_in)
    return (x.T @ x / len(x)).astype(np.float32)


def plain(w, name, h):
    data = quantize(np.ascontiguousarray(w.T), name, np.diagonal(h).copy())
    return dequantize(data, name, len(w)).T


def rounded(w, name, h, sweeps=4):
    return feedback.round_matrix(w, feedback.factored(h), FORMATS[name], sweeps=sweeps)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCALAR)
def test_the_output_error_falls_well_below_that_of_rounding_alone(name):
    rng = np.random.default_rng(1)
    w = rng.standard_normal((512, 24)).astype(np.float32)
    h = correlated(rng, 512)
    alone = feedback.output_error(w, plain(w, name, h), h).sum()
    greedy = feedback.output_error(w, rounded(w, name, h, sweeps=0)[1], h).sum()
    swept = feedback.output_error(w, rounded(w, name, h)[1], h).sum()
    assert greedy < 0.8 * alone
    assert swept < 0.97 * greedy


@pytest.mark.slow
@pytest.mark.parametrize("name", SCALAR)
def test_the_blocks_decode_to_the_weights_it_reports(name):
    rng = np.random.default_rng(2)
    w = rng.standard_normal((256, 9)).astype(np.float32)
    blocks, q = rounded(w, name, correlated(rng, 256))
    data = np.ascontiguousarray(blocks.T).view(np.uint8).reshape(9, -1)
    np.testing.assert_allclose(dequantize(data, name, 256).T, q, atol=1e-5)


def test_uncorrelated_inputs_leave_plain_rounding():
    rng = np.random.default_rng(3)
    w = rng.standard_normal((256, 16)).astype(np.float32)
    _, q = rounded(w, "Q4_K", np.eye(256, dtype=np.float32), sweeps=0)
    np.testing.assert_allclose(q, plain(w, "Q4_K", np.eye(256)), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "h",
    [
        np.zeros((256, 256)),
        np.ones((256, 256)),
        np.diag(np.r_[1e6, np.zeros(255)]),
        correlated(np.random.default_rng(4), 256, rank=3),
        np.diag(np.full(256, 1e-30)),
        -1e-3 * np.eye(256) + np.ones((256, 256)),
    ],
    ids=["zero", "rank one", "one input", "rank three", "tiny", "indefinite by rounding"],
)
@pytest.mark.parametrize("name", ["Q4_0", "Q2_K", "IQ4_XS"])
def test_any_second_moments_will_do(name, h):
    w = np.random.default_rng(5).standard_normal((256, 8)).astype(np.float32)
    _, q = rounded(w, name, h)
    assert np.isfinite(q).all()
    assert np.square(w - q).sum() < 4 * np.square(w).sum()


@pytest.mark.slow
@pytest.mark.parametrize("name", SCALAR)
def test_zeros_stay_zero(name):
    _, q = rounded(np.zeros((256, 4), np.float32), name, np.eye(256))
    assert not q.any()


def test_the_factor_reproduces_the_damped_moments():
    h = correlated(np.random.default_rng(6), 128)
    moments = feedback.factored(h)
    v, order = moments.factor.v, moments.factor.order
    assert not np.tril(v, -1).any()
    np.testing.assert_allclose(v @ v.T, moments.h[order][:, order], rtol=1e-4, atol=1e-5)
    b = np.random.default_rng(8).standard_normal((128, 3)).astype(np.float32)
    np.testing.assert_allclose(moments.h @ moments.solve(b), b, atol=1e-3)
    np.testing.assert_allclose(
        moments.h - h, np.eye(128) * feedback.DAMPING * np.diagonal(h).mean(), rtol=1e-3, atol=1e-6
    )


def test_rows_do_not_depend_on_each_other():
    rng = np.random.default_rng(7)
    w, h = rng.standard_normal((256, 64)).astype(np.float32), correlated(rng, 256)
    whole = rounded(w, "Q3_K", h)[1]
    part = rounded(np.ascontiguousarray(w[:, :32]), "Q3_K", h)[1]
    assert np.square(whole[:, :32] - part).mean() < 1e-4 * np.square(w - whole).mean()


@pytest.mark.parametrize("name", ["Q4_K", "IQ4_NL", "MXFP4", "NVFP4"])
def test_weights_that_are_no_numbers_are_refused(name):
    w = np.random.default_rng(9).standard_normal((256, 8)).astype(np.float32)
    w[100, 3] = np.nan
    with np.errstate(invalid="ignore"), pytest.raises(WeightError):
        rounded(w, name, np.eye(256), sweeps=0)
