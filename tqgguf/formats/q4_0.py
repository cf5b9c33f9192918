"""Q4_0: 32 weights share one scale; w = d * (q - 8), q in 0..15."""

import numpy as np

from tqgguf.formats._block import pack_4_bits, scale_format
from tqgguf.formats._quick import by_strips
from tqgguf.kernels import quick
from tqgguf.kernels.dtypes import Blocks
from tqgguf.kernels.quick import Strip
from tqgguf.kernels.scales import to_half

LAYOUT = np.dtype([("d", "<f2"), ("qs", "u1", (16,))])
LEVELS = np.arange(-8, 8, dtype=np.float32)
FACTORS = (1.04, 0.9, 0.98, 1.12)


def fill(strip: Strip, blocks: Blocks) -> None:
    """Encode a strip, the weight of largest magnitude on -8 d."""
    d = quick.signed_peak(strip.y) * np.float32(-1 / 8)
    blocks["d"] = to_half(d)
    quick.store(quick.nibbles(quick.codes(strip, d, 8.5, 15)), blocks["qs"])


FORMAT = scale_format(
    "Q4_0", LAYOUT, LEVELS, factors=FACTORS, pack=pack_4_bits, quick=by_strips(fill)
)
