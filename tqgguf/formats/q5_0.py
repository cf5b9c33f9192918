"""Q5_0: 32 weights share one scale; w = d * (q - 16), q in 0..31."""

import numpy as np

from tqgguf.formats._format import Codes, Format, Grid
from tqgguf.kernels.bits import pack_planes
from tqgguf.kernels.dtypes import F32, Blocks
from tqgguf.kernels.scales import symmetric, to_half
from tqgguf.kernels.search import reciprocal

LAYOUT = np.dtype([("d", "<f2"), ("qh", "u1", (4,)), ("qs", "u1", (16,))])
LEVELS = np.arange(-16, 16, dtype=np.float32)
FACTORS = (1.01, 0.94, 0.99, 1.03, 0.88, 0.96, 0.92, 1.05)


def fit(x: F32, importance: F32 | None) -> Blocks:
    """(32, n) float32 -> (n,) blocks with d set."""
    blocks = np.zeros(x.shape[1], LAYOUT)
    qx, qq = symmetric(x, importance, levels=LEVELS, factors=FACTORS)
    blocks["d"] = to_half(qx * reciprocal(qq))
    return blocks


def grid(blocks: Blocks) -> Grid:
    """(n,) blocks -> step and offset, (1, n) float32 each."""
    step = blocks["d"].astype(np.float32)[None]
    return step, np.zeros_like(step)


def pack(blocks: Blocks, codes: Codes) -> None:
    """Write codes, (32, n) uint8: bits 0-3 as in Q4_0, bit 4 of weight e in bit e % 8 of a byte."""
    low, high = codes & np.uint8(15), codes >> np.uint8(4)
    blocks["qs"] = pack_planes(low.reshape(2, 16, -1), bits=4).T
    blocks["qh"] = pack_planes(high.reshape(4, 8, 1, -1), bits=1)[:, 0].T


FORMAT = Format("Q5_0", LAYOUT, fit, pack, LEVELS, 32, grid)
