"""IQ2_S: groups of 8 weights; w = d * (2 * s + 1) / 8 * sign * point, one of 1024.

qs holds the low bytes of the points' numbers, then a byte of signs per group; qh the numbers' top 2
bits, four groups to a byte. Each 16 weights have a scale s of 4 bits.
"""

import numpy as np

from tqgguf.formats._lattice import LatticeFormat, load_points, read_nibbles, write_nibbles
from tqgguf.kernels.bits import pack_planes
from tqgguf.kernels.dtypes import Blocks
from tqgguf.kernels.lattice import LatticeCodes, LatticeGrid

LAYOUT = np.dtype([("d", "<f2"), ("qs", "u1", (2, 32)), ("qh", "u1", (8,)), ("scales", "u1", (8,))])
LATTICE = LatticeGrid(load_points("IQ2_S", 8), size=16, shared_signs=False)


def pack(blocks: Blocks, codes: LatticeCodes) -> None:
    """Write the numbers of the points, (32, n), and the signs, (32, n)."""
    blocks["qs"][:, 0] = (codes.points & 255).T
    blocks["qs"][:, 1] = codes.signs.T
    high = (codes.points >> 8).astype(np.uint8).reshape(8, 4, -1).swapaxes(0, 1)
    blocks["qh"] = pack_planes(high, bits=2).T


FORMAT = LatticeFormat("IQ2_S", LAYOUT, LATTICE, read_nibbles, write_nibbles, pack)
