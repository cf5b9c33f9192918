"""Q4_0: 32 weights share one scale; w = d * (q - 8), q in 0..15."""

import numpy as np

from tqgguf.formats._format import Codes, Format, Grid
from tqgguf.kernels.bits import pack_planes
from tqgguf.kernels.dtypes import F32, Blocks
from tqgguf.kernels.scales import symmetric, to_half
from tqgguf.kernels.search import reciprocal

LAYOUT = np.dtype([("d", "<f2"), ("qs", "u1", (16,))])
LEVELS = np.arange(-8, 8, dtype=np.float32)
FACTORS = (1.02, 1.08, 0.9, 0.98, 1.04, 1.12, 0.86, 0.78)


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
    """Write codes, (32, n) uint8: weights 0..15 in the low nibbles, 16..31 in the high ones."""
    blocks["qs"] = pack_planes(codes.reshape(2, 16, -1), bits=4).T


FORMAT = Format("Q4_0", LAYOUT, fit, pack, LEVELS, 32, grid)
