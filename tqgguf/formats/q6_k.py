"""Q6_K: 16 groups of 16 weights; w = d * scales[g] * (q - 32), q in 0..63, scales int8."""

import numpy as np

from tqgguf.formats._superblock import symmetric_format
from tqgguf.kernels.bits import pack_planes
from tqgguf.kernels.dtypes import F32, I8, U8, Blocks

LAYOUT = np.dtype(
    [("ql", "u1", (2, 64)), ("qh", "u1", (2, 32)), ("scales", "i1", (16,)), ("d", "<f2")]
)
LEVELS = np.arange(-32, 32, dtype=np.float32)
FACTORS = (1.0, 0.97, 0.94, 0.905, 1.01, 0.93)


def read(blocks: Blocks) -> I8:
    """The groups' signed 8-bit scales: (n,) blocks -> (16, n)."""
    scales: I8 = blocks["scales"].T
    return scales


def store(blocks: Blocks, sc: F32) -> None:
    """Undo `read`."""
    blocks["scales"] = sc.astype(np.int8).T


def pack(blocks: Blocks, codes: U8) -> None:
    """Write codes, (256, n) uint8.

    Of each 128 weights, bits 0-3 of the first 64 share bytes with those of the second 64, and
    bits 4-5 of four runs of 32 share 32 bytes.
    """
    low = pack_planes((codes & np.uint8(15)).reshape(2, 2, 64, -1), bits=4)
    high = pack_planes((codes >> np.uint8(4)).reshape(2, 4, 32, -1), bits=2)
    blocks["ql"], blocks["qh"] = np.moveaxis(low, -1, 0), np.moveaxis(high, -1, 0)


FORMAT = symmetric_format(
    "Q6_K",
    LAYOUT,
    LEVELS,
    group_size=16,
    limits=(-128, 127),
    factors=FACTORS,
    read=read,
    store=store,
    pack=pack,
)
