"""8-bit scales against ml_dtypes and gguf-py."""

import ml_dtypes
import numpy as np
from gguf.quants import NVFP4

from tqgguf.kernels import e4m3

CODES = np.arange(127, dtype=np.uint8)


def test_values_are_those_of_the_format():
    expected = CODES.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    np.testing.assert_array_equal(e4m3.decode(CODES), expected)
    np.testing.assert_array_equal(e4m3.decode(CODES) / 2, NVFP4.ue4m3_to_fp32(CODES))


def test_codes_are_the_nearest():
    x = np.abs(np.random.default_rng(0).standard_normal(5000).astype(np.float32)) ** 5
    x = np.concatenate([x, e4m3.decode(CODES), np.float32([0, 1e-9, 500, 1e9])])
    distance = np.abs(e4m3.decode(CODES)[:, None] - x)
    chosen = np.abs(e4m3.decode(e4m3.encode(x)) - x)
    np.testing.assert_array_equal(chosen, distance.min(axis=0))
