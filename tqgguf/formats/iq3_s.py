"""IQ3_S: groups of 4 weights; w = d * (2 * s + 1) * sign * point, one of 512.

qs holds the low bytes of the points' numbers, qh their ninth bits, signs a byte per 8 weights. Each
32 weights have a scale s of 4 bits.
"""

import numpy as np

from tqgguf.formats._format import Format
from tqgguf.formats._points import load_points
from tqgguf.kernels.dtypes import F32, Blocks
from tqgguf.kernels.lattice import (
    LatticeCodes,
    LatticeGrid,
    pack_bits,
    pack_nibbles,
    unpack_nibbles,
)
from tqgguf.kernels.lattice_scales import STEP_CODES, fit_scales, to_steps, unit_scales

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


def fit(x: F32, importance: F32 | None) -> Blocks:
    """(256, n) float32 -> (n,) blocks with d and scales set."""
    blocks = np.zeros(x.shape[1], LAYOUT)
    blocks["d"], multiples = fit_scales(x, importance, LATTICE)
    store(blocks, multiples, multiples)
    return blocks


def store(blocks: Blocks, multiples: F32, _: F32) -> None:
    """Write the runs' scales in units of d, (8, n), odd."""
    blocks["scales"] = pack_nibbles(to_steps(multiples)).T


def scales(blocks: Blocks) -> F32:
    """(n,) blocks -> (8, n) float32."""
    return unit_scales(blocks["d"], unpack_nibbles(blocks["scales"].T))


def pack(blocks: Blocks, codes: LatticeCodes) -> None:
    """Write the numbers of the points, (64, n), and the signs, (32, n)."""
    blocks["qs"] = (codes.points & 255).T
    blocks["qh"] = pack_bits((codes.points > 255).reshape(8, 8, -1)).T
    blocks["signs"] = codes.signs.T


FORMAT = Format(
    "IQ3_S",
    LAYOUT,
    fit,
    pack,
    lattice=LATTICE,
    scales=scales,
    store=store,
    step_codes=STEP_CODES,
)
