"""IQ3_XXS: groups of 4 weights; w = d * (2 * s + 1) / 4 * sign * point, one of 256.

qs holds the points' numbers. Each 32 weights have a word: four times 7 signs, the eighth of
an octet makes their number of minuses even, and s, 0..15, in the top 4 bits.
"""

import numpy as np

from tqgguf.formats._lattice import LatticeFormat, load_points, top_nibbles, with_top_nibbles
from tqgguf.kernels.dtypes import U8, U32, Blocks
from tqgguf.kernels.lattice import LatticeCodes, LatticeGrid, pack_seven_signs

LAYOUT = np.dtype([("d", "<f2"), ("qs", "u1", (64,)), ("scales_and_signs", "<u4", (8,))])
LATTICE = LatticeGrid(load_points("IQ3_XXS", 4), size=32, shared_signs=True)


def read_steps(blocks: Blocks) -> U32:
    """(n,) blocks -> (8, n)."""
    return top_nibbles(blocks["scales_and_signs"])


def write_steps(blocks: Blocks, steps: U8) -> None:
    """Undo `read_steps`."""
    blocks["scales_and_signs"] = with_top_nibbles(blocks["scales_and_signs"], steps)


def pack(blocks: Blocks, codes: LatticeCodes) -> None:
    """Write the numbers of the points, (64, n), and the signs below the scales."""
    blocks["qs"] = codes.points.T
    steps = blocks["scales_and_signs"] >> 28 << 28
    blocks["scales_and_signs"] = steps | pack_seven_signs(codes.signs).T


FORMAT = LatticeFormat("IQ3_XXS", LAYOUT, LATTICE, read_steps, write_steps, pack)
