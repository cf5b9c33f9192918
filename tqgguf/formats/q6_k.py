"""Q6_K: 16 groups of 16 weights; w = d * scales[g] * (q - 32), q in 0..63, scales int8."""

import numpy as np

from tqgguf.formats._format import Codes, Format, Grid
from tqgguf.kernels.bits import pack_planes
from tqgguf.kernels.dtypes import F32, U8, Blocks
from tqgguf.kernels.superblocks import symmetric_block

LAYOUT = np.dtype(
    [("ql", "u1", (2, 64)), ("qh", "u1", (2, 32)), ("scales", "i1", (16,)), ("d", "<f2")]
)
LEVELS = np.arange(-32, 32, dtype=np.float32)
FACTORS = (1.0, 0.97, 0.94, 0.905, 1.01, 0.93)


def fit(x: F32, importance: F32 | None) -> Blocks:
    """(256, n) float32 -> (n,) blocks with d and scales set."""
    blocks = np.zeros(x.shape[1], LAYOUT)
    blocks["d"], sc = symmetric_block(
        x, importance, size=16, levels=LEVELS, low=-128, high=127, factors=FACTORS
    )
    store(blocks, sc, sc)
    return blocks


def store(blocks: Blocks, sc: F32 | U8, m: F32 | U8) -> None:  # noqa: ARG001  no offsets
    """Write the groups' signed 8-bit scales, (16, n); there are no minima."""
    blocks["scales"] = sc.astype(np.int8).T


def grid(blocks: Blocks) -> Grid:
    """(n,) blocks -> step and offset, (16, n) float32 each."""
    step = blocks["d"].astype(np.float32) * blocks["scales"].T
    return step, np.zeros_like(step)


def pack(blocks: Blocks, codes: Codes) -> None:
    """Write codes, (256, n) uint8.

    Of each 128 weights, bits 0-3 of the first 64 share bytes with those of the second 64, and
    bits 4-5 of four runs of 32 share 32 bytes.
    """
    low = pack_planes((codes & 15).reshape(2, 2, 64, -1), bits=4)
    high = pack_planes((codes >> 4).reshape(2, 4, 32, -1), bits=2)
    blocks["ql"], blocks["qh"] = np.moveaxis(low, -1, 0), np.moveaxis(high, -1, 0)


FORMAT = Format("Q6_K", LAYOUT, fit, pack, LEVELS, 16, grid, store=store, step_codes=(-128, 127))
