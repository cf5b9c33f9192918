"""Q2_0: 64 weights share one scale; w = d * (q - 1), q in 0..3. d may be negative."""

import numpy as np

from tqgguf.formats._block import scale_format
from tqgguf.formats._quick import by_strips
from tqgguf.kernels import quick
from tqgguf.kernels.bits import pack_planes
from tqgguf.kernels.dtypes import U8, Blocks
from tqgguf.kernels.quick import Strip

LAYOUT = np.dtype([("d", "<f2"), ("qs", "u1", (16,))])
LEVELS = np.arange(-1, 3, dtype=np.float32)
FACTORS = (-2.2, 2.2, -1.8, 2.6, -2.6)


def pack(blocks: Blocks, codes: U8) -> None:
    """Write codes, (64, n) uint8: four neighbours to a byte."""
    planes = codes.reshape(16, 4, -1).swapaxes(0, 1)
    blocks["qs"] = pack_planes(planes, bits=2).T


def fill(strip: Strip, blocks: Blocks) -> None:
    """Encode a strip."""
    blocks["d"], words = quick.quaternary(strip)
    quick.store(quick.quarters(words), blocks["qs"])


FORMAT = scale_format(
    *("Q2_0", LAYOUT, LEVELS), size=64, factors=FACTORS, pack=pack, plain=by_strips(fill)
)
