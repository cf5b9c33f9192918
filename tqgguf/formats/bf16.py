"""BF16: the upper half of a float32, rounded to nearest even."""

import numpy as np

from tqgguf.formats._float import FloatFormat
from tqgguf.kernels.dtypes import F32, U16

LAYOUT = np.dtype([("w", "<u2")])
LIMIT = 3.3961775e38  # rounds to infinity


def cast(w: F32) -> U16:
    """(n,) float32 -> (n,) uint16."""
    bits = w.view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
    return (rounded >> np.uint32(16)).astype("<u2")


FORMAT = FloatFormat("BF16", LAYOUT, cast, significand=8, limit=LIMIT, beyond="bfloat16; use F32")
