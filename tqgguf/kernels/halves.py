"""Half precision to single, in vectors: NumPy converts halves one by one, eight times as slowly."""

import math

import numpy as np

from tqgguf.kernels.dtypes import F16, F32

_SHIFT = 23 - 10  # bits of a float32's fraction beyond a half's
_KEPT = np.int32(-(1 << 31) | 0x7FFF << _SHIFT)  # the sign, and exponent and fraction in place
_BIASES = np.float32(math.ldexp(1, 127 - 15))
_BEYOND = np.float32(65536)  # what the exponent of infinities and NaN looks like


def single_from_half(x: F16) -> F32:
    """The same numbers, exactly, subnormals and those that are none included: any shape, float32.

    A half's bits in a float32's places are too small by the ratio of the exponents' biases.
    """
    bits = x.view(np.int16).astype(np.int32)  # widening repeats the sign bit
    bits <<= _SHIFT
    bits &= _KEPT
    single: F32 = bits.view(np.float32)
    single *= _BIASES
    if single.max(initial=0) < _BEYOND and single.min(initial=0) > -_BEYOND:
        return single
    return x.astype(np.float32)
