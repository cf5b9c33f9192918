import numpy as np

from tqgguf.kernels.halves import single_from_half

EVERY = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
FINITE = EVERY[np.isfinite(EVERY)]


def test_every_half_is_converted_exactly():
    for halves in (EVERY, FINITE, EVERY[np.isnan(EVERY)]):
        single = single_from_half(halves)
        assert single.dtype == np.float32
        np.testing.assert_array_equal(single, halves.astype(np.float32))
    np.testing.assert_array_equal(
        np.signbit(single_from_half(FINITE)), np.signbit(FINITE)
    )  # also of the zeros


def test_any_shape_and_stride():
    x = FINITE[:63488].reshape(62, 1024)
    np.testing.assert_array_equal(single_from_half(x[3:40:2, 64:128]), x[3:40:2, 64:128])
    assert single_from_half(x[:0]).shape == (0, 1024)
