"""Unsigned 8-bit floats of 4 exponent and 3 fraction bits: the scales of NVFP4's groups."""

import numpy as np

from tqgguf.kernels.dtypes import F32, U8

LARGEST = np.float32(448)
_TOP = 126  # its code; 127 is NaN
_NORMAL = np.float32(2.0**-6)  # below, steps of 2^-9
_DROPPED = 23 - 3  # bits of a float32's fraction beyond three
_BIAS = (127 - 7) << 3


def _values() -> F32:
    code = np.arange(128)
    exponent, fraction = code >> 3, code & 7
    normal = np.ldexp(1 + fraction / 8, exponent - 7)
    values = np.where(exponent == 0, fraction * 2.0**-9, normal).astype(np.float32)
    values[_TOP + 1] = 0  # as ggml reads NaN
    return values


VALUES = _values()


def encode(x: F32) -> U8:
    """The nearest codes, those of 448 beyond it: x >= 0 of any shape -> uint8."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(1 << (_DROPPED - 1))) >> np.uint32(_DROPPED)
    normal = rounded.astype(np.int32) - _BIAS
    small = np.rint(np.minimum(x, _NORMAL) * np.float32(512)).astype(np.int32)
    code: U8 = np.minimum(np.where(x < _NORMAL, small, normal), _TOP).astype(np.uint8)
    return code


def decode(codes: U8) -> F32:
    """What codes stand for: any shape -> float32."""
    return VALUES.take(codes)
