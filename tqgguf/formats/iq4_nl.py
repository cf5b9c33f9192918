"""IQ4_NL: 32 weights share one scale; w = d * levels[q], 16 levels spaced for a bell curve."""

import numpy as np
from gguf import quants

from tqgguf.formats._format import Codes, Format, Grid
from tqgguf.kernels.bits import pack_planes
from tqgguf.kernels.dtypes import F32, Blocks
from tqgguf.kernels.scales import symmetric, to_half
from tqgguf.kernels.search import reciprocal

LAYOUT = np.dtype([("d", "<f2"), ("qs", "u1", (16,))])
LEVELS = np.array(quants.IQ4_NL.kvalues, np.float32)
FACTORS = (1.02, -0.9, 0.96, 1.08, 0.86, -0.96, -0.86, 1.0, 1.04, 0.82)


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


FORMAT = Format("IQ4_NL", LAYOUT, fit, pack, LEVELS, 32, grid)
