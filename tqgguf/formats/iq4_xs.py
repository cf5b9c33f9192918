"""IQ4_XS: 8 groups of 32 weights; w = d * (ls[g] - 32) * levels[q], ls 6 bits, levels as IQ4_NL."""

import numpy as np

from tqgguf.formats._candidates import IQ4_FACTORS, IQ4_LEVELS
from tqgguf.formats._superblock import symmetric_format
from tqgguf.kernels.bits import pack_planes, unpack_planes
from tqgguf.kernels.dtypes import F32, U8, Blocks

LAYOUT = np.dtype(
    [("d", "<f2"), ("scales_h", "u1", (2,)), ("scales_l", "u1", (4,)), ("qs", "u1", (8, 16))]
)


def read(blocks: Blocks) -> F32:
    """The groups' signed 6-bit scales, (8, n): g in nibble g of scales_l, bits 2g of scales_h."""
    low = unpack_planes(blocks["scales_l"].T[:, None], bits=4)
    high = unpack_planes(blocks["scales_h"].T[:, None], bits=2)
    ls = low.reshape(8, -1) | high.reshape(8, -1) << np.uint8(4)
    return ls.astype(np.float32) - 32


def store(blocks: Blocks, sc: F32) -> None:
    """Undo `read`."""
    ls = (sc + 32).astype(np.uint8)
    low, high = ls & np.uint8(15), ls >> np.uint8(4)
    blocks["scales_l"] = pack_planes(low.reshape(4, 2, 1, -1), bits=4)[:, 0].T
    blocks["scales_h"] = pack_planes(high.reshape(2, 4, 1, -1), bits=2)[:, 0].T


def pack(blocks: Blocks, codes: U8) -> None:
    """Write codes, (256, n) uint8: every group of 32 as in Q4_0."""
    packed = pack_planes(codes.reshape(8, 2, 16, -1), bits=4)
    blocks["qs"] = np.moveaxis(packed, -1, 0)


FORMAT = symmetric_format(
    "IQ4_XS",
    LAYOUT,
    IQ4_LEVELS,
    group_size=32,
    limits=(-32, 31),
    factors=IQ4_FACTORS,
    read=read,
    store=store,
    pack=pack,
)
