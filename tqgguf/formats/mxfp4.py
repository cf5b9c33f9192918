"""MXFP4: 32 weights share a power of two; w = 2^(e - 128) * level, level = +-0 1 2 3 4 6 8 12."""

import numpy as np

from tqgguf.formats._block import pack_4_bits
from tqgguf.formats._candidates import E2M1_LEVELS, E2M1_NIBBLES
from tqgguf.formats._scalar import Grid, ScalarFormat
from tqgguf.kernels.dtypes import F32, U8, Blocks
from tqgguf.kernels.scales import power_of_two

LAYOUT = np.dtype([("e", "u1"), ("qs", "u1", (16,))])


def fit(x: F32, importance: F32 | None) -> Blocks:
    """(32, n) float32 -> (n,) blocks with e set."""
    blocks = np.zeros(x.shape[1], LAYOUT)
    exponent = power_of_two(x, importance, levels=E2M1_LEVELS)
    blocks["e"] = np.clip(exponent + 128, 0, 254)
    return blocks


def grid(blocks: Blocks) -> Grid:
    """(n,) blocks -> step and offset, (1, n) float32 each."""
    step = np.ldexp(np.float32(1), blocks["e"].astype(np.int32) - 128)[None]
    return step, np.zeros_like(step)


def pack(blocks: Blocks, codes: U8) -> None:
    """Write codes, (32, n) uint8 indices: a sign and three bits each, in nibbles as in Q4_0."""
    pack_4_bits(blocks, E2M1_NIBBLES[codes])


FORMAT = ScalarFormat("MXFP4", LAYOUT, E2M1_LEVELS, group_size=32, fit=fit, grid=grid, pack=pack)
