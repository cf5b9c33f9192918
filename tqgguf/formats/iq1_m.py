"""IQ1_M: groups of 8 weights; w = d * (2 * s + 1) * (point +- 1/8), one of 2048 ternary points.

qs holds the low bytes of the points' numbers, qh a nibble per group: their top 3 bits, then 1 where
its shift is -1/8. Each 16 weights have a scale s of 3 bits, four in a word; the words' top 4 bits
are those of d, a float16.
"""

import numpy as np

from tqgguf.formats._lattice import LatticeFormat, load_points
from tqgguf.kernels.dtypes import F16, U8, U16, Blocks
from tqgguf.kernels.lattice import LatticeCodes, pack_nibbles
from tqgguf.kernels.ternary_lattice import TernaryGrid, fit_scales

LAYOUT = np.dtype([("qs", "u1", (32,)), ("qh", "u1", (16,)), ("scales", "<u2", (4,))])
LATTICE = TernaryGrid(load_points("IQ1_S", 1), size=16, shared_shift=False)
_TOP = np.uint16(0xF000)
_STEPS = np.arange(0, 12, 3, dtype=np.uint16)  # where the steps of a word begin
_NIBBLES = np.arange(0, 16, 4, dtype=np.uint16)  # and d's nibbles


def read_steps(blocks: Blocks) -> U8:
    """(n,) blocks -> (16, n)."""
    steps = blocks["scales"][:, :, None] >> _STEPS & np.uint16(7)
    return steps.astype(np.uint8).reshape(-1, 16).T


def write_steps(blocks: Blocks, steps: U8) -> None:
    """Undo `read_steps`."""
    words = steps.T.astype(np.uint16).reshape(-1, 4, 4) << _STEPS
    blocks["scales"] = blocks["scales"] & _TOP | np.bitwise_or.reduce(words, axis=2)


def read_d(blocks: Blocks) -> F16:
    """(n,) blocks -> (n,), from the top nibbles of the words, the lowest first."""
    nibbles: U16 = blocks["scales"] >> np.uint16(12) << _NIBBLES
    d: F16 = np.bitwise_or.reduce(nibbles, axis=1).view(np.float16)
    return d


def write_d(blocks: Blocks, d: F16) -> None:
    """Undo `read_d`."""
    nibbles = d.view(np.uint16)[:, None] >> _NIBBLES & np.uint16(15)
    blocks["scales"] = blocks["scales"] & ~_TOP | nibbles << np.uint16(12)


def pack(blocks: Blocks, codes: LatticeCodes) -> None:
    """Write the numbers of the points, (32, n)."""
    blocks["qs"] = (codes.points & 255).T
    blocks["qh"] = pack_nibbles((codes.points >> 8).astype(np.uint8)).T


FORMAT = LatticeFormat(
    "IQ1_M", LAYOUT, LATTICE, read_steps, write_steps, pack, fit_scales, read_d, write_d
)
