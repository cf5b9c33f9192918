"""Q4_1: 32 weights share a scale and a minimum; w = d * q + m, q in 0..15."""

import numpy as np

from tqgguf.formats._block import minimum_format, pack_4_bits
from tqgguf.formats._candidates import RANGES_4_BITS

LAYOUT = np.dtype([("d", "<f2"), ("m", "<f2"), ("qs", "u1", (16,))])
LEVELS = np.arange(16, dtype=np.float32)
RANGES = RANGES_4_BITS[:6]

FORMAT = minimum_format("Q4_1", LAYOUT, LEVELS, ranges=RANGES, pack=pack_4_bits)
