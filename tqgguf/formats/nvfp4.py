"""NVFP4: groups of 16 weights share a scale, an 8-bit float s; w = s / 2 * level, levels as MXFP4.

Such scales span no more than 2^-9 to 448, so a float32 scale of the whole matrix belongs to it, in
a tensor of its own (`tqgguf.output.scales`).
"""

import numpy as np

from tqgguf.formats._candidates import E2M1_LEVELS, E2M1_NIBBLES
from tqgguf.formats._scalar import Grid, ScalarFormat
from tqgguf.kernels import e4m3
from tqgguf.kernels.bits import pack_planes
from tqgguf.kernels.dtypes import F32, U8, Blocks
from tqgguf.kernels.scales import as_groups, coded_scale

LAYOUT = np.dtype([("d", "u1", (4,)), ("qs", "u1", (4, 8))])
SHIFTS = (0, 3, 5)  # codes of the scale to try, from the one that holds the largest weight


def fit(x: F32, importance: F32 | None) -> Blocks:
    """(64, n) float32 -> (n,) blocks with d set."""
    blocks = np.zeros(x.shape[1], LAYOUT)
    weight = None if importance is None else as_groups(importance, 16)
    codes = coded_scale(as_groups(x, 16), weight, levels=E2M1_LEVELS, shifts=SHIFTS)
    blocks["d"] = codes.reshape(4, -1).T
    return blocks


def grid(blocks: Blocks) -> Grid:
    """(n,) blocks -> step and offset, (4, n) float32 each."""
    step = e4m3.decode(blocks["d"].T) / np.float32(2)
    return step, np.zeros_like(step)


def pack(blocks: Blocks, codes: U8) -> None:
    """Write codes, (64, n) uint8 indices: a sign and three bits each, every group as Q4_0."""
    nibbles = E2M1_NIBBLES[codes].reshape(4, 2, 8, -1)
    blocks["qs"] = np.moveaxis(pack_planes(nibbles, bits=4), -1, 0)


FORMAT = ScalarFormat(
    "NVFP4", LAYOUT, E2M1_LEVELS, group_size=16, fit=fit, grid=grid, pack=pack, is_scaled=True
)
