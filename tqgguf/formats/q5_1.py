"""Q5_1: 32 weights share a scale and a minimum; w = d * q + m, q in 0..31."""

import numpy as np

from tqgguf.formats._block import minimum_format, pack_5_bits
from tqgguf.formats._candidates import RANGES_5_BITS

LAYOUT = np.dtype([("d", "<f2"), ("m", "<f2"), ("qh", "u1", (4,)), ("qs", "u1", (16,))])
LEVELS = np.arange(32, dtype=np.float32)
RANGES = RANGES_5_BITS

FORMAT = minimum_format("Q5_1", LAYOUT, LEVELS, ranges=RANGES, pack=pack_5_bits)
