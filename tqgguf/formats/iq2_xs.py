"""IQ2_XS: groups of 8 weights; w = d * (2 * s + 1) / 8 * sign * point, one of 512.

A group has 16 bits: 9 for the number of its point, 7 signs, the eighth makes their number of
minuses even. Each 16 weights have a scale s of 4 bits.
"""

import numpy as np

from tqgguf.formats._lattice import LatticeFormat, load_points, read_nibbles, write_nibbles
from tqgguf.kernels.dtypes import Blocks
from tqgguf.kernels.lattice import LatticeCodes, LatticeGrid

LAYOUT = np.dtype([("d", "<f2"), ("qs", "<u2", (32,)), ("scales", "u1", (8,))])
LATTICE = LatticeGrid(load_points("IQ2_XS", 8), size=16, shared_signs=True)


def pack(blocks: Blocks, codes: LatticeCodes) -> None:
    """Write the numbers of the points, (32, n), and seven signs above each."""
    seven = (codes.signs & np.uint8(127)).astype(np.uint16)
    blocks["qs"] = (codes.points | seven << 9).T


FORMAT = LatticeFormat("IQ2_XS", LAYOUT, LATTICE, read_nibbles, write_nibbles, pack)
