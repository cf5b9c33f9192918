"""IQ2_S: groups of 8 weights; w = d * (2 * s + 1) / 8 * sign * point, one of 1024.

qs holds the low bytes of the points' numbers, then a byte of signs per group; qh the numbers' top 2
bits, four groups to a byte. Each 16 weights have a scale s of 4 bits.
"""

import numpy as np

from tqgguf.formats._format import Format
from tqgguf.formats._points import load_points
from tqgguf.kernels.bits import pack_planes
from tqgguf.kernels.dtypes import F32, Blocks
from tqgguf.kernels.lattice import LatticeCodes, LatticeGrid, pack_nibbles, unpack_nibbles
from tqgguf.kernels.lattice_scales import STEP_CODES, fit_scales, to_steps, unit_scales

LAYOUT = np.dtype([("d", "<f2"), ("qs", "u1", (2, 32)), ("qh", "u1", (8,)), ("scales", "u1", (8,))])
LATTICE = LatticeGrid(load_points("IQ2_S", 8), size=16, shared_signs=False)


def fit(x: F32, importance: F32 | None) -> Blocks:
    """(256, n) float32 -> (n,) blocks with d and scales set."""
    blocks = np.zeros(x.shape[1], LAYOUT)
    blocks["d"], multiples = fit_scales(x, importance, LATTICE)
    store(blocks, multiples, multiples)
    return blocks


def store(blocks: Blocks, multiples: F32, _: F32) -> None:
    """Write the runs' scales in units of d, (16, n), odd."""
    blocks["scales"] = pack_nibbles(to_steps(multiples)).T


def scales(blocks: Blocks) -> F32:
    """(n,) blocks -> (16, n) float32."""
    return unit_scales(blocks["d"], unpack_nibbles(blocks["scales"].T))


def pack(blocks: Blocks, codes: LatticeCodes) -> None:
    """Write the numbers of the points, (32, n), and the signs, (32, n)."""
    blocks["qs"][:, 0] = (codes.points & 255).T
    blocks["qs"][:, 1] = codes.signs.T
    high = (codes.points >> 8).astype(np.uint8).reshape(8, 4, -1).swapaxes(0, 1)
    blocks["qh"] = pack_planes(high, bits=2).T


FORMAT = Format(
    "IQ2_S",
    LAYOUT,
    fit,
    pack,
    lattice=LATTICE,
    scales=scales,
    store=store,
    step_codes=STEP_CODES,
)
