"""F16: IEEE half precision, rounded to nearest."""

import numpy as np

from tqgguf.formats._float import FloatFormat

LAYOUT = np.dtype([("w", "<f2")])
LIMIT = 65520  # rounds to infinity

FORMAT = FloatFormat(
    "F16",
    LAYOUT,
    lambda w: w.astype("<f2"),
    significand=11,
    limit=LIMIT,
    beyond="65504; use BF16 or F32",
)
