"""Q2_K: 16 groups of 16 weights; w = d * sc[g] * q - dmin * m[g], q in 0..3, sc and m 4 bits."""

import numpy as np

from tqgguf.formats._format import Codes, Format, Grid
from tqgguf.kernels.bits import pack_planes
from tqgguf.kernels.dtypes import F32, U8, Blocks
from tqgguf.kernels.superblocks import affine_block

LAYOUT = np.dtype([("scales", "u1", (16,)), ("qs", "u1", (2, 32)), ("d", "<f2"), ("dmin", "<f2")])
LEVELS = np.arange(4, dtype=np.float32)
RANGES = (
    (0.3, 0.3),
    (0.5, 0.1),
    (0.0, 0.4),
    (0.1, 0.0),
    (0.2, 0.5),
    (0.3, -0.2),
    (-0.1, 0.6),
    (0.5, 0.3),
)


def fit(x: F32, importance: F32 | None) -> Blocks:
    """(256, n) float32 -> (n,) blocks with d, dmin and scales set."""
    blocks = np.zeros(x.shape[1], LAYOUT)
    blocks["d"], blocks["dmin"], sc, m = affine_block(
        x, importance, size=16, levels=3, top=15, ranges=RANGES, rounds=2
    )
    store(blocks, sc, m)
    return blocks


def store(blocks: Blocks, sc: F32 | U8, m: F32 | U8) -> None:
    """Write the groups' 4-bit scales and minima, (16, n) each."""
    blocks["scales"] = (sc.astype(np.uint8) | m.astype(np.uint8) << np.uint8(4)).T


def grid(blocks: Blocks) -> Grid:
    """(n,) blocks -> step and offset, (16, n) float32 each."""
    sc, m = blocks["scales"].T & 15, blocks["scales"].T >> 4
    return blocks["d"].astype(np.float32) * sc, -blocks["dmin"].astype(np.float32) * m


def pack(blocks: Blocks, codes: Codes) -> None:
    """Write codes, (256, n) uint8: of each 128 weights, four runs of 32 share 32 bytes."""
    packed = pack_planes(codes.reshape(2, 4, 32, -1), bits=2)
    blocks["qs"] = np.moveaxis(packed, -1, 0)


FORMAT = Format(
    "Q2_K",
    LAYOUT,
    fit,
    pack,
    LEVELS,
    16,
    grid,
    store=store,
    step_codes=(0, 15),
    offset_codes=(0, 15),
)
