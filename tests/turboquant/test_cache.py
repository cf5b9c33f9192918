"""The compressed key-value cache against attention over the plain vectors."""

import math

import numpy as np
import pytest

from tests.turboquant.vectors import unit_vectors
from tqgguf.errors import ShapeError
from tqgguf.turboquant import KVCache, TurboQuantMSE, TurboQuantProd

DIM = 128


def filled(keys, n=4096):
    cache = KVCache(keys, TurboQuantMSE(DIM, 4, seed=1))
    k, v = unit_vectors(n, DIM, 20), unit_vectors(n, DIM, 21)
    cache.append(k, v)
    return cache, k, v


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (TurboQuantProd(DIM, 4), 0.974),
        (TurboQuantMSE(DIM, 3), 0.983),
        (TurboQuantMSE(DIM, 4), 0.995),
    ],
)
def test_scores_correlate_with_the_true_ones_as_theory_says(keys, expected):
    cache, k, _ = filled(keys)
    queries = unit_vectors(64, DIM, 22)
    scores = cache.attention_scores(queries)
    assert np.corrcoef(scores.ravel(), (queries @ k.T).ravel())[0, 1] == pytest.approx(
        expected, abs=0.004
    )


def test_output_is_softmax_attention_over_the_decompressed_vectors():
    cache, k, v = filled(TurboQuantProd(DIM, 4), n=300)
    queries = 30 * unit_vectors(5, DIM, 23)
    keys = cache.keys.decompress(cache.keys.compress(k))
    values = cache.values.decompress(cache.values.compress(v))
    weights = np.exp((queries @ keys.T / math.sqrt(DIM)).astype(np.float64))
    expected = weights / weights.sum(axis=1, keepdims=True) @ values
    np.testing.assert_allclose(cache.attention_output(queries), expected, atol=1e-4)
    np.testing.assert_allclose(cache.attention_output(queries[1]), expected[1], atol=1e-4)
    hard = cache.attention_output(queries, scale=1e6)
    np.testing.assert_allclose(hard, values[np.argmax(queries @ keys.T, axis=1)], atol=1e-4)


def test_appending_one_by_one_is_appending_at_once():
    at_once, k, v = filled(TurboQuantMSE(DIM, 3), n=20)
    cache = KVCache(at_once.keys, at_once.values)
    assert len(cache) == 0
    assert math.isnan(cache.compression_ratio())
    for i, (key, value) in enumerate(zip(k, v, strict=True)):
        cache.append(key, value)
        assert len(cache) == i + 1
        if i == 7:
            assert cache.attention_scores(key).shape == (8,)
    np.testing.assert_array_equal(cache.attention_scores(k[3]), at_once.attention_scores(k[3]))
    assert cache.nbytes == at_once.nbytes == 20 * (48 + 4 + 64 + 4)
    assert cache.compression_ratio() == pytest.approx(2 * DIM * 4 / 120)
    assert cache.compression_ratio(bytes_per_number=2) == pytest.approx(2 * DIM * 2 / 120)


def test_misuse_is_refused_in_one_line():
    cache = KVCache(TurboQuantMSE(DIM, 3), TurboQuantMSE(DIM, 3))
    with pytest.raises(ShapeError, match="the cache is empty"):
        cache.attention_scores(np.ones(DIM, np.float32))
    with pytest.raises(ShapeError, match="the cache is empty"):
        cache.attention_output(np.ones(DIM, np.float32))
    with pytest.raises(ShapeError, match="2 keys and 3 values"):
        cache.append(np.ones((2, DIM), np.float32), np.ones((3, DIM), np.float32))
    assert len(cache) == 0
