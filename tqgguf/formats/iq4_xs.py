"""IQ4_XS: 8 groups of 32 weights; w = d * (ls[g] - 32) * levels[q], ls 6 bits, levels as IQ4_NL."""

import numpy as np
from gguf import quants

from tqgguf.formats._format import Codes, Format, Grid
from tqgguf.kernels.bits import pack_planes, unpack_planes
from tqgguf.kernels.dtypes import F32, U8, Blocks
from tqgguf.kernels.superblocks import symmetric_block

LAYOUT = np.dtype(
    [("d", "<f2"), ("scales_h", "u1", (2,)), ("scales_l", "u1", (4,)), ("qs", "u1", (8, 16))]
)
LEVELS = np.array(quants.IQ4_NL.kvalues, np.float32)
FACTORS = (1.02, -0.9, 0.96, 1.08, 0.86, -0.96, -0.86, 1.0, 1.04, 0.82)


def fit(x: F32, importance: F32 | None) -> Blocks:
    """(256, n) float32 -> (n,) blocks with d and scales set."""
    blocks = np.zeros(x.shape[1], LAYOUT)
    blocks["d"], sc = symmetric_block(
        x, importance, size=32, levels=LEVELS, low=-32, high=31, factors=FACTORS
    )
    store(blocks, sc, sc)
    return blocks


def store(blocks: Blocks, sc: F32 | U8, m: F32 | U8) -> None:  # noqa: ARG001  no offsets
    """Write the groups' signed 6-bit scales, (8, n); there are no minima."""
    ls = (sc + 32).astype(np.uint8)
    low, high = ls & np.uint8(15), ls >> np.uint8(4)
    blocks["scales_l"] = pack_planes(low.reshape(4, 2, 1, -1), bits=4)[:, 0].T
    blocks["scales_h"] = pack_planes(high.reshape(2, 4, 1, -1), bits=2)[:, 0].T


def grid(blocks: Blocks) -> Grid:
    """(n,) blocks -> step and offset, (8, n) float32 each."""
    step = blocks["d"].astype(np.float32) * (_scales(blocks).astype(np.float32) - 32)
    return step, np.zeros_like(step)


def pack(blocks: Blocks, codes: Codes) -> None:
    """Write codes, (256, n) uint8: every group of 32 as in Q4_0."""
    packed = pack_planes(codes.reshape(8, 2, 16, -1), bits=4)
    blocks["qs"] = np.moveaxis(packed, -1, 0)


def _scales(blocks: Blocks) -> U8:
    """(n,) blocks -> ls, (8, n) uint8: group g in nibble g of scales_l, bits 2g of scales_h."""
    low = unpack_planes(blocks["scales_l"].T[:, None], bits=4)
    high = unpack_planes(blocks["scales_h"].T[:, None], bits=2)
    return low.reshape(8, -1) | high.reshape(8, -1) << np.uint8(4)


FORMAT = Format("IQ4_XS", LAYOUT, fit, pack, LEVELS, 32, grid, store=store, step_codes=(-32, 31))
