"""Q4_1: 32 weights share a scale and a minimum; w = d * q + m, q in 0..15."""

import numpy as np

from tqgguf.formats._block import minimum_format, pack_4_bits
from tqgguf.formats._candidates import RANGES_4_BITS
from tqgguf.formats._quick import by_strips
from tqgguf.kernels import quick
from tqgguf.kernels.dtypes import Blocks
from tqgguf.kernels.quick import Strip
from tqgguf.kernels.scales import to_half

LAYOUT = np.dtype([("d", "<f2"), ("m", "<f2"), ("qs", "u1", (16,))])
LEVELS = np.arange(16, dtype=np.float32)
RANGES = RANGES_4_BITS[:6]


def fill(strip: Strip, blocks: Blocks) -> None:
    """Encode a strip, from the lowest to the highest weight."""
    low, high = quick.extremes(strip.y)
    d = (high - low) * np.float32(1 / 15)
    blocks["d"], blocks["m"] = to_half(d), to_half(low)
    quick.store(quick.nibbles(quick.codes_above(strip, low, d, 15)), blocks["qs"])


FORMAT = minimum_format(
    "Q4_1", LAYOUT, LEVELS, ranges=RANGES, pack=pack_4_bits, quick=by_strips(fill)
)
