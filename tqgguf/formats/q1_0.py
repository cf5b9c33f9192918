"""Q1_0: 128 weights share one scale; w = d or -d."""

import numpy as np

from tqgguf.formats._block import scale_grid
from tqgguf.formats._scalar import ScalarFormat
from tqgguf.kernels.bits import pack_planes
from tqgguf.kernels.dtypes import F32, U8, Blocks
from tqgguf.kernels.scales import mean_magnitude, to_half

LAYOUT = np.dtype([("d", "<f2"), ("qs", "u1", (16,))])
LEVELS = np.array([-1, 1], np.float32)


def fit(x: F32, importance: F32 | None) -> Blocks:
    """(128, n) float32 -> (n,) blocks with d set."""
    blocks = np.zeros(x.shape[1], LAYOUT)
    blocks["d"] = to_half(mean_magnitude(x, importance))
    return blocks


def pack(blocks: Blocks, codes: U8) -> None:
    """Write codes, (128, n) uint8: bit e % 8 of byte e / 8."""
    planes = codes.reshape(16, 8, -1).swapaxes(0, 1)
    blocks["qs"] = pack_planes(planes, bits=1).T


FORMAT = ScalarFormat("Q1_0", LAYOUT, LEVELS, group_size=128, fit=fit, grid=scale_grid, pack=pack)
