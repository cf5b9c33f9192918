"""Q4_1: 32 weights share a scale and a minimum; w = d * q + m, q in 0..15."""

import numpy as np

from tqgguf.formats._format import Codes, Format, Grid
from tqgguf.kernels.bits import pack_planes
from tqgguf.kernels.dtypes import F32, Blocks
from tqgguf.kernels.scales import affine_pair

LAYOUT = np.dtype([("d", "<f2"), ("m", "<f2"), ("qs", "u1", (16,))])
LEVELS = np.arange(16, dtype=np.float32)
RANGES = ((0.2, 0.2), (-0.2, 0.4), (0.4, -0.1), (0.0, 0.3), (0.2, -0.6), (0.1, -0.1))


def fit(x: F32, importance: F32 | None) -> Blocks:
    """(32, n) float32 -> (n,) blocks with d and m set."""
    blocks = np.zeros(x.shape[1], LAYOUT)
    blocks["d"], blocks["m"] = affine_pair(x, importance, levels=15, ranges=RANGES)
    return blocks


def grid(blocks: Blocks) -> Grid:
    """(n,) blocks -> step and offset, (1, n) float32 each."""
    return blocks["d"].astype(np.float32)[None], blocks["m"].astype(np.float32)[None]


def pack(blocks: Blocks, codes: Codes) -> None:
    """Write codes, (32, n) uint8: weights 0..15 in the low nibbles, 16..31 in the high ones."""
    blocks["qs"] = pack_planes(codes.reshape(2, 16, -1), bits=4).T


FORMAT = Format("Q4_1", LAYOUT, fit, pack, LEVELS, 32, grid)
