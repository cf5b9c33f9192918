"""F32: the weights as they are."""

import numpy as np

from tqgguf.formats._float import FloatFormat

LAYOUT = np.dtype([("w", "<f4")])

FORMAT = FloatFormat("F32", LAYOUT, lambda w: w.astype("<f4"), significand=24)
