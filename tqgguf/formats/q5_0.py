"""Q5_0: 32 weights share one scale; w = d * (q - 16), q in 0..31."""

import numpy as np

from tqgguf.formats._block import pack_5_bits, scale_format
from tqgguf.formats._quick import by_strips
from tqgguf.kernels import quick
from tqgguf.kernels.dtypes import Blocks
from tqgguf.kernels.quick import Strip
from tqgguf.kernels.scales import to_half

LAYOUT = np.dtype([("d", "<f2"), ("qh", "u1", (4,)), ("qs", "u1", (16,))])
LEVELS = np.arange(-16, 16, dtype=np.float32)
FACTORS = (1.01, 0.94, 0.99, 1.03, 0.88, 0.96, 0.92, 1.05)


def fill(strip: Strip, blocks: Blocks) -> None:
    """Encode a strip, the weight of largest magnitude on -16 d."""
    d = quick.signed_peak(strip.y) * np.float32(-1 / 16)
    blocks["d"] = to_half(d)
    codes = quick.codes(strip, d, 16.5, 31)
    quick.store(quick.fifth_bits(codes), blocks["qh"])
    quick.store(quick.nibbles(codes & np.uint32(0x0F0F0F0F)), blocks["qs"])


FORMAT = scale_format(
    "Q5_0", LAYOUT, LEVELS, factors=FACTORS, pack=pack_5_bits, quick=by_strips(fill)
)
