import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tqgguf.kernels import hadamard

ORDERS = [("sylvester", 2**k) for k in range(14)] + [("regular", 4**k) for k in range(7)]


def dense(order, kind):
    """The matrix by its definition, in float64, independent of the kernel's factors."""
    base = {
        "sylvester": np.array([[1.0, 1.0], [1.0, -1.0]]) / math.sqrt(2),
        "regular": np.array([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]]) / 2,
    }[kind]
    h = np.ones((1, 1))
    while len(h) < order:
        h = np.kron(h, base)
    return h


@pytest.mark.parametrize(("kind", "order"), [o for o in ORDERS if o[1] <= 1024])
def test_apply_equals_the_dense_product_on_both_sides(kind, order):
    rng = np.random.default_rng(order)
    x = rng.standard_normal((3, 2 * order)).astype(np.float32)
    q = np.kron(np.eye(2), dense(order, kind))
    want = x.astype(np.float64) @ q
    right = hadamard.apply(x, order=order, kind=kind)
    left = hadamard.apply(np.ascontiguousarray(x.T), order=order, kind=kind, axis=0)
    assert right.dtype == left.dtype == np.float32
    assert np.linalg.norm(right - want) <= 1e-6 * np.linalg.norm(want)
    assert np.linalg.norm(left.T - want) <= 1e-6 * np.linalg.norm(want)


@pytest.mark.parametrize(("kind", "order"), ORDERS)
def test_apply_is_its_own_inverse_and_keeps_length(kind, order):
    x = np.random.default_rng(1).standard_normal((2, order)).astype(np.float32)
    y = hadamard.apply(x, order=order, kind=kind)
    np.testing.assert_allclose(hadamard.apply(y, order=order, kind=kind), x, atol=2e-5)
    np.testing.assert_allclose(np.linalg.norm(y, axis=1), np.linalg.norm(x, axis=1), rtol=1e-5)


@given(st.integers(0, 6))
def test_regular_matrices_keep_the_mean(k):
    ones = np.ones((1, 4**k), np.float32)
    np.testing.assert_allclose(hadamard.apply(ones, order=4**k, kind="regular"), ones, atol=1e-5)


@given(st.integers(1, 10**6))
def test_largest_order_is_an_order_and_no_larger_one_divides(size):
    for kind, step in (("sylvester", 2), ("regular", 4)):
        order = hadamard.largest_order(size, kind)
        assert size % order == 0
        assert size % (order * step) != 0
        assert hadamard.is_order(order, kind)


def test_blocks_never_mix_rows():
    with pytest.raises(ValueError, match="axis of 96 cannot be cut into blocks of 64"):
        hadamard.apply(np.ones((2, 96), np.float32), order=64)


def test_signs_are_pinned_for_ever():
    s = hadamard.signs(4096, seed=0)
    assert s.dtype == np.int8
    assert set(s.tolist()) == {-1, 1}
    assert abs(int(s.sum())) < 300
    assert hadamard.signs(10, seed=7).tolist() == hadamard.signs(100, seed=7)[:10].tolist()
    assert hadamard.signs(16, seed=0).tolist() != hadamard.signs(16, seed=1).tolist()
