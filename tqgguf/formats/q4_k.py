"""Q4_K: 8 groups of 32 weights; w = d * sc[g] * q - dmin * m[g], q in 0..15, sc and m 6 bits."""

import numpy as np

from tqgguf.formats._candidates import RANGES_4_BITS
from tqgguf.formats._superblock import affine_format, read_6bit_pairs, store_6bit_pairs
from tqgguf.kernels.bits import pack_planes
from tqgguf.kernels.dtypes import U8, Blocks

LAYOUT = np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", (12,)), ("qs", "u1", (4, 32))])
LEVELS = np.arange(16, dtype=np.float32)


def pack(blocks: Blocks, codes: U8) -> None:
    """Write codes, (256, n) uint8: of each 64 weights, 32 in low nibbles, 32 in high ones."""
    packed = pack_planes(codes.reshape(4, 2, 32, -1), bits=4)
    blocks["qs"] = np.moveaxis(packed, -1, 0)


FORMAT = affine_format(
    "Q4_K",
    LAYOUT,
    LEVELS,
    group_size=32,
    limits=(0, 63),
    ranges=RANGES_4_BITS,
    read=read_6bit_pairs,
    store=store_6bit_pairs,
    pack=pack,
)
