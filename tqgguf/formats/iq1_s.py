"""IQ1_S: groups of 8 weights; w = d * (2 * s + 1) * (point +- 1/8), one of 2048 ternary points.

qs holds the low bytes of the points' numbers. Each 32 weights have a word in qh: four times the
numbers' top 3 bits, then a scale s of 3 bits, then 1 where their shift is -1/8.
"""

import numpy as np

from tqgguf.formats._lattice import LatticeFormat, load_points
from tqgguf.kernels.dtypes import U8, Blocks
from tqgguf.kernels.lattice import LatticeCodes
from tqgguf.kernels.ternary_lattice import TernaryGrid, fit_scales

LAYOUT = np.dtype([("d", "<f2"), ("qs", "u1", (32,)), ("qh", "<u2", (8,))])
LATTICE = TernaryGrid(load_points("IQ1_S", 1), size=32, shared_shift=True)


def read_steps(blocks: Blocks) -> U8:
    """(n,) blocks -> (8, n), 8 added where the shift is negative."""
    steps: U8 = (blocks["qh"].T >> np.uint16(12)).astype(np.uint8)
    return steps


def write_steps(blocks: Blocks, steps: U8) -> None:
    """Undo `read_steps`."""
    points = blocks["qh"] & np.uint16((1 << 12) - 1)
    blocks["qh"] = points | (steps.astype(np.uint16) << np.uint16(12)).T


def pack(blocks: Blocks, codes: LatticeCodes) -> None:
    """Write the numbers of the points, (32, n)."""
    blocks["qs"] = (codes.points & 255).T
    high = (codes.points >> 8 & 7).reshape(8, 4, -1)
    shifts = np.arange(0, 12, 3, dtype=np.uint16)[:, None]
    steps = blocks["qh"] >> 12 << 12
    blocks["qh"] = steps | np.bitwise_or.reduce(high << shifts, axis=1).T


FORMAT = LatticeFormat("IQ1_S", LAYOUT, LATTICE, read_steps, write_steps, pack, fit_scales)
