"""IQ3_S: groups of 4 weights; w = d * (2 * s + 1) * sign * point, one of 512.

qs holds the low bytes of the points' numbers, qh their ninth bits, signs a byte per 8 weights. Each
32 weights have a scale s of 4 bits.
"""

import numpy as np

from tqgguf.formats._lattice import LatticeFormat, load_points, read_nibbles, write_nibbles
from tqgguf.kernels.dtypes import Blocks
from tqgguf.kernels.lattice import LatticeCodes, LatticeGrid, pack_bits

LAYOUT = np.dtype(
    [
        ("d", "<f2"),
        ("qs", "u1", (64,)),
        ("qh", "u1", (8,)),
        ("signs", "u1", (32,)),
        ("scales", "u1", (4,)),
    ]
)
LATTICE = LatticeGrid(load_points("IQ3_S", 1), size=32, shared_signs=False)


def pack(blocks: Blocks, codes: LatticeCodes) -> None:
    """Write the numbers of the points, (64, n), and the signs, (32, n)."""
    blocks["qs"] = (codes.points & 255).T
    blocks["qh"] = pack_bits((codes.points > 255).reshape(8, 8, -1)).T
    blocks["signs"] = codes.signs.T


FORMAT = LatticeFormat("IQ3_S", LAYOUT, LATTICE, read_nibbles, write_nibbles, pack)
