"""IQ2_XXS: groups of 8 weights; w = d * (2 * s + 1) / 8 * sign * point, one of 256.

Each 32 weights have four point numbers of 8 bits, then a word: four times 7 signs, the eighth makes
their number of minuses even, and s, 0..15, in the top 4 bits.
"""

import numpy as np

from tqgguf.formats._lattice import LatticeFormat, load_points, top_nibbles, with_top_nibbles
from tqgguf.kernels.dtypes import U8, U32, Blocks
from tqgguf.kernels.lattice import LatticeCodes, LatticeGrid, pack_seven_signs

RUN = np.dtype([("points", "u1", (4,)), ("signs_and_scale", "<u4")])
LAYOUT = np.dtype([("d", "<f2"), ("qs", RUN, (8,))])
LATTICE = LatticeGrid(load_points("IQ2_XXS", 8), size=32, shared_signs=True)


def read_steps(blocks: Blocks) -> U32:
    """(n,) blocks -> (8, n)."""
    return top_nibbles(blocks["qs"]["signs_and_scale"])


def write_steps(blocks: Blocks, steps: U8) -> None:
    """Undo `read_steps`."""
    blocks["qs"]["signs_and_scale"] = with_top_nibbles(blocks["qs"]["signs_and_scale"], steps)


def pack(blocks: Blocks, codes: LatticeCodes) -> None:
    """Write the numbers of the points, (32, n), and the signs below the scales."""
    blocks["qs"]["points"] = codes.points.T.reshape(-1, 8, 4)
    steps = blocks["qs"]["signs_and_scale"] >> 28 << 28
    blocks["qs"]["signs_and_scale"] = steps | pack_seven_signs(codes.signs).T


FORMAT = LatticeFormat("IQ2_XXS", LAYOUT, LATTICE, read_steps, write_steps, pack)
