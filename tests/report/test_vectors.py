"""`report turboquant` and `report kv`: recomputed one vector at a time from the definitions."""

import math

import numpy as np
import pytest

from tqgguf.errors import PlanError, ShapeError
from tqgguf.report import vectors
from tqgguf.turboquant import TurboQuantMSE, TurboQuantProd, gaussian_codebook


def test_a_row_is_what_the_definitions_give_one_vector_at_a_time():
    (row,) = vectors.distortions(bits=[3], dim=32, vectors=300, seed=7)
    x, y = vectors.unit_vectors(600, 32, seed=7).astype(np.float64).reshape(2, 300, 32)
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


def test_the_report_meets_theory_and_shows_the_papers_values():
    rows = vectors.distortions(vectors=10_000)
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
    (row,) = vectors.distortions(bits=[5], dim=16, vectors=50)
    assert row.d_mse_paper is None
    assert row.d_prod_paper is None


def test_the_cache_report_is_attention_over_the_decompressed_vectors():
    rows = vectors.simulate_cache(bits=[3], dim=64, length=200, queries=9, seed=5)
    v = (vectors.unit_vectors(409, 64, seed=5) * np.float32(8)).astype(np.float64)
    k, values, q = v[:200], v[200:400], v[400:]

    def attention(keys, values):
        weights = np.exp(q @ keys.T / 8)
        return weights / weights.sum(axis=1, keepdims=True) @ values

    stored_values = TurboQuantMSE(64, 3, seed=6)
    restored = stored_values.decompress(stored_values.compress(values.astype(np.float32)))
    for row, keys in zip(
        rows, (TurboQuantMSE(64, 3, seed=5), TurboQuantProd(64, 4, seed=5)), strict=True
    ):
        approximate = keys.decompress(keys.compress(k.astype(np.float32))).astype(np.float64)
        scores, true = q @ approximate.T, q @ k.T
        correlation = np.corrcoef(scores.ravel(), true.ravel())[0, 1]
        assert row.score_correlation == pytest.approx(correlation, abs=1e-5)
        assert row.score_bias == pytest.approx(
            np.sum(scores * true) / np.sum(true**2) - 1, abs=1e-4
        )
        error = np.linalg.norm(attention(approximate, restored) - attention(k, values))
        relative = error / np.linalg.norm(attention(k, values))
        assert row.output_rel_error == pytest.approx(relative, rel=1e-3)
        assert row.n_bytes == 200 * (keys.bytes_per_vector + stored_values.bytes_per_vector)
        assert row.compression == pytest.approx(200 * 2 * 64 * 2 / row.n_bytes)
        assert row.compression_float32 == pytest.approx(2 * row.compression)
        assert (row.bits, row.keys) in ((3, "mse"), (4, "prod"))


def test_the_cache_meets_its_theory():
    rows = {(r.keys, r.bits): r for r in vectors.simulate_cache(length=2048)}
    for key, expected in ((("prod", 4), 0.974), (("mse", 3), 0.983), (("mse", 4), 0.995)):
        assert rows[key].score_correlation == pytest.approx(expected, abs=0.004)
        assert rows[key].correlation_theory == pytest.approx(expected, abs=0.001)
    assert abs(rows["prod", 4].score_bias) < 0.005 < abs(rows["mse", 4].score_bias)


def test_bad_sizes_are_refused_in_one_line():
    with pytest.raises(PlanError, match="1 vectors: at least 2"):
        vectors.distortions(vectors=1)
    with pytest.raises(ShapeError, match="dim 100: the Hadamard rotation needs a power of two"):
        vectors.distortions(dim=100)
    with pytest.raises(ShapeError, match="bits 9"):
        vectors.distortions(bits=[9], dim=16, vectors=10)
    with pytest.raises(PlanError, match="length 1"):
        vectors.simulate_cache(length=1)
