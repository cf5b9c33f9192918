"""Q5_K: 8 groups of 32 weights; w = d * sc[g] * q - dmin * m[g], q in 0..31, sc and m 6 bits."""

import numpy as np

from tqgguf.formats._candidates import RANGES_5_BITS
from tqgguf.formats._superblock import affine_format, read_6bit_pairs, store_6bit_pairs
from tqgguf.kernels.bits import pack_planes
from tqgguf.kernels.dtypes import U8, Blocks

LAYOUT = np.dtype(
    [
        ("d", "<f2"),
        ("dmin", "<f2"),
        ("scales", "u1", (12,)),
        ("qh", "u1", (32,)),
        ("qs", "u1", (4, 32)),
    ]
)
LEVELS = np.arange(32, dtype=np.float32)


def pack(blocks: Blocks, codes: U8) -> None:
    """Write codes, (256, n) uint8: bits 0-3 as in Q4_K, bit 4 of group g in bit g of qh."""
    low = pack_planes((codes & np.uint8(15)).reshape(4, 2, 32, -1), bits=4)
    blocks["qs"] = np.moveaxis(low, -1, 0)
    blocks["qh"] = pack_planes((codes >> np.uint8(4)).reshape(8, 32, -1), bits=1).T


FORMAT = affine_format(
    "Q5_K",
    LAYOUT,
    LEVELS,
    group_size=32,
    limits=(0, 63),
    ranges=RANGES_5_BITS,
    read=read_6bit_pairs,
    store=store_6bit_pairs,
    pack=pack,
)
