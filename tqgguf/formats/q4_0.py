"""Q4_0: 32 weights share one scale; w = d * (q - 8), q in 0..15."""

import numpy as np

from tqgguf.formats._block import pack_4_bits, scale_format

LAYOUT = np.dtype([("d", "<f2"), ("qs", "u1", (16,))])
LEVELS = np.arange(-8, 8, dtype=np.float32)
FACTORS = (1.02, 1.08, 0.9, 0.98, 1.04, 1.12, 0.86, 0.78)

FORMAT = scale_format("Q4_0", LAYOUT, LEVELS, factors=FACTORS, pack=pack_4_bits)
