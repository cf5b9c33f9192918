"""Q3_K: 16 groups of 16 weights; w = d * sc[g] * (q - 4), q in 0..7, sc in -32..31."""

import numpy as np

from tqgguf.formats._format import Codes, Format, Grid
from tqgguf.kernels.bits import pack_6bit, pack_planes, unpack_6bit
from tqgguf.kernels.dtypes import F32, U8, Blocks
from tqgguf.kernels.superblocks import symmetric_block

LAYOUT = np.dtype(
    [("hmask", "u1", (32,)), ("qs", "u1", (2, 32)), ("scales", "u1", (12,)), ("d", "<f2")]
)
LEVELS = np.arange(-4, 4, dtype=np.float32)
FACTORS = (1.04, 0.8, 1.16, 0.96, 1.1)


def fit(x: F32, importance: F32 | None) -> Blocks:
    """(256, n) float32 -> (n,) blocks with d and scales set."""
    blocks = np.zeros(x.shape[1], LAYOUT)
    blocks["d"], sc = symmetric_block(
        x, importance, size=16, levels=LEVELS, low=-32, high=31, factors=FACTORS
    )
    store(blocks, sc, sc)
    return blocks


def store(blocks: Blocks, sc: F32 | U8, m: F32 | U8) -> None:  # noqa: ARG001  no offsets
    """Write the groups' signed 6-bit scales, (16, n); there are no minima."""
    blocks["scales"] = pack_6bit((sc + 32).astype(np.uint8)).T


def grid(blocks: Blocks) -> Grid:
    """(n,) blocks -> step and offset, (16, n) float32 each."""
    sc = unpack_6bit(blocks["scales"].T).astype(np.float32) - 32
    step = blocks["d"].astype(np.float32) * sc
    return step, np.zeros_like(step)


def pack(blocks: Blocks, codes: Codes) -> None:
    """Write codes, (256, n) uint8: bits 0-1 as in Q2_K, bit 2 of each run of 32 in hmask."""
    low = pack_planes((codes & 3).reshape(2, 4, 32, -1), bits=2)
    blocks["qs"] = np.moveaxis(low, -1, 0)
    blocks["hmask"] = pack_planes((codes >> 2).reshape(8, 32, -1), bits=1).T


FORMAT = Format("Q3_K", LAYOUT, fit, pack, LEVELS, 16, grid, store=store, step_codes=(-32, 31))
