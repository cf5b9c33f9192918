"""`report turboquant` and `report kv`: recomputed one vector at a time from the definitions."""

import math

import numpy as np
import pytest

from tqgguf.errors import PlanError, ShapeError
from tqgguf.measure import turboquant
from tqgguf.turboquant import TurboQuantMSE, TurboQuantProd, gaussian_codebook


def test_a_row_is_what_the_definitions_give_one_vector_at_a_time():
    (row,) = turboquant.distortions(bits=[3], dim=32, vectors=300, seed=7)
    x, y = turboquant.unit_vectors(600, 32, seed=7).astype(np.float64).reshape(2, 300, 32)
    mse, prod = TurboQuantMSE(32, 3, seed=7), TurboQuantProd(32, 3, seed=7)
    distances, squares, signed = [], [], []
    for vector, query in zip(x.astype(np.float32), y.astype(np.float32), strict=True):
        restored = mse.decompress(mse.compress(vector))[0]
        distances.append(np.sum((restored.astype(np.float64) - vector) ** 2))
        error = float(prod.inner_product(query, prod.compress(vector))[0]) - float(vector @ query)
        squares.append(error**2)
        signed.append(error * math.copysign(1, vector @ query))
    assert row.d_mse == pytest.approx(np.mean(distances), rel=1e-4)
    assert row.d_prod == pytest.approx(np.mean(squares), rel=1e-4)
    assert row.bias == pytest.approx(np.mean(signed), rel=1e-3, abs=1e-7)
    assert row.bias_stderr == pytest.approx(np.std(signed) / math.sqrt(300), rel=1e-3)
    assert row.bits_per_value == (3 * 32 + 32) / 32
    assert row.bits_per_value_prod == (3 * 32 + 64) / 32
    assert row.bound == 4**-3


@pytest.mark.slow
def test_the_report_meets_theory_and_shows_the_papers_values():
    rows = turboquant.distortions(vectors=10_000)
    for row in rows:
        assert row.d_mse == pytest.approx(gaussian_codebook(row.bits).mse, rel=0.016)
        assert row.d_mse == pytest.approx(row.d_mse_theory, rel=0.006)
        assert row.d_mse > row.bound
        assert row.d_prod == pytest.approx(row.d_prod_theory, rel=0.05)
        expected = math.pi / 2 * gaussian_codebook(row.bits - 1).mse
        assert row.dim * row.d_prod == pytest.approx(expected, rel=0.05)
        assert abs(row.bias) < 3 * row.bias_stderr
        assert row.bias_mse < -3 * row.bias_stderr
    assert [r.d_mse_paper for r in rows] == [0.36, 0.117, 0.03, 0.009]
    assert [r.dim * r.d_prod_paper for r in rows] == pytest.approx([1.57, 0.56, 0.18, 0.047])


def test_beyond_four_bits_the_paper_says_nothing():
    (row,) = turboquant.distortions(bits=[5], dim=16, vectors=50)
    assert row.d_mse_paper is None
    assert row.d_prod_paper is None


def test_bad_sizes_are_refused_in_one_line():
    with pytest.raises(PlanError, match="1 vectors: at least 2"):
        turboquant.distortions(vectors=1)
    with pytest.raises(ShapeError, match="dim 100: the Hadamard rotation needs a power of two"):
        turboquant.distortions(dim=100)
    with pytest.raises(ShapeError, match="bits 9"):
        turboquant.distortions(bits=[9], dim=16, vectors=10)
