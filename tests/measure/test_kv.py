"""`report kv`: attention over a compressed cache, recomputed from the definitions."""

import numpy as np
import pytest

from tqgguf.errors import PlanError
from tqgguf.measure import kv, turboquant
from tqgguf.turboquant import TurboQuantMSE, TurboQuantProd


def test_the_cache_report_is_attention_over_the_decompressed_vectors():
    rows = kv.simulate_cache(bits=[3], dim=64, length=200, queries=9, seed=5)
    v = (turboquant.unit_vectors(409, 64, seed=5) * np.float32(8)).astype(np.float64)
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


@pytest.mark.slow
def test_the_cache_meets_its_theory():
    rows = {(r.keys, r.bits): r for r in kv.simulate_cache(length=2048)}
    for key, expected in ((("prod", 4), 0.974), (("mse", 3), 0.983), (("mse", 4), 0.995)):
        assert rows[key].score_correlation == pytest.approx(expected, abs=0.004)
        assert rows[key].correlation_theory == pytest.approx(expected, abs=0.001)
    assert abs(rows["prod", 4].score_bias) < 0.005 < abs(rows["mse", 4].score_bias)


def test_too_few_keys_are_refused_in_one_line():
    with pytest.raises(PlanError, match="length 1, queries 64: at least 2 keys"):
        kv.simulate_cache(length=1)
