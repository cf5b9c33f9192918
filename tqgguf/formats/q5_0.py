"""Q5_0: 32 weights share one scale; w = d * (q - 16), q in 0..31."""

import numpy as np

from tqgguf.formats._block import pack_5_bits, scale_format

LAYOUT = np.dtype([("d", "<f2"), ("qh", "u1", (4,)), ("qs", "u1", (16,))])
LEVELS = np.arange(-16, 16, dtype=np.float32)
FACTORS = (1.01, 0.94, 0.99, 1.03, 0.88, 0.96, 0.92, 1.05)

FORMAT = scale_format("Q5_0", LAYOUT, LEVELS, factors=FACTORS, pack=pack_5_bits)
