"""IQ4_NL: 32 weights share one scale; w = d * levels[q], 16 levels spaced for a bell curve."""

import numpy as np

from tqgguf.formats._block import pack_4_bits, scale_format
from tqgguf.formats._candidates import IQ4_FACTORS, IQ4_LEVELS

LAYOUT = np.dtype([("d", "<f2"), ("qs", "u1", (16,))])

FORMAT = scale_format("IQ4_NL", LAYOUT, IQ4_LEVELS, factors=IQ4_FACTORS, pack=pack_4_bits)
