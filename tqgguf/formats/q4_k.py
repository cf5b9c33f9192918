"""Q4_K: 8 groups of 32 weights; w = d * sc[g] * q - dmin * m[g], q in 0..15, sc and m 6 bits."""

import numpy as np

from tqgguf.formats._format import Codes, Format, Grid
from tqgguf.kernels.bits import pack_6bit_pairs, pack_planes, unpack_6bit_pairs
from tqgguf.kernels.dtypes import F32, U8, Blocks
from tqgguf.kernels.superblocks import affine_block

LAYOUT = np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", (12,)), ("qs", "u1", (4, 32))])
LEVELS = np.arange(16, dtype=np.float32)
RANGES = (
    (0.2, 0.2),
    (-0.2, 0.4),
    (0.4, -0.1),
    (0.0, 0.3),
    (0.2, -0.6),
    (0.1, -0.1),
    (-0.6, 0.2),
)


def fit(x: F32, importance: F32 | None) -> Blocks:
    """(256, n) float32 -> (n,) blocks with d, dmin and scales set."""
    blocks = np.zeros(x.shape[1], LAYOUT)
    blocks["d"], blocks["dmin"], sc, m = affine_block(
        x, importance, size=32, levels=15, top=63, ranges=RANGES
    )
    store(blocks, sc, m)
    return blocks


def store(blocks: Blocks, sc: F32 | U8, m: F32 | U8) -> None:
    """Write the groups' 6-bit scales and minima, (8, n) each."""
    blocks["scales"] = pack_6bit_pairs(sc.astype(np.uint8), m.astype(np.uint8)).T


def grid(blocks: Blocks) -> Grid:
    """(n,) blocks -> step and offset, (8, n) float32 each."""
    sc, m = unpack_6bit_pairs(blocks["scales"].T)
    return blocks["d"].astype(np.float32) * sc, -blocks["dmin"].astype(np.float32) * m


def pack(blocks: Blocks, codes: Codes) -> None:
    """Write codes, (256, n) uint8: of each 64 weights, 32 in low nibbles, 32 in high ones."""
    packed = pack_planes(codes.reshape(4, 2, 32, -1), bits=4)
    blocks["qs"] = np.moveaxis(packed, -1, 0)


FORMAT = Format(
    "Q4_K",
    LAYOUT,
    fit,
    pack,
    LEVELS,
    32,
    grid,
    store=store,
    step_codes=(0, 63),
    offset_codes=(0, 63),
)
