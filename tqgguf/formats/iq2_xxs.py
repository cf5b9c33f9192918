"""IQ2_XXS: groups of 8 weights; w = d * (2 * s + 1) / 8 * sign * point, one of 256.

Each 32 weights have four point numbers of 8 bits, then a word: four times 7 signs, the eighth makes
their number of minuses even, and s, 0..15, in the top 4 bits.
"""

import numpy as np

from tqgguf.formats._format import Format
from tqgguf.formats._points import load_points
from tqgguf.kernels.dtypes import F32, U32, Blocks
from tqgguf.kernels.lattice import LatticeCodes, LatticeGrid, pack_seven_signs
from tqgguf.kernels.lattice_scales import STEP_CODES, fit_scales, to_steps, unit_scales

RUN = np.dtype([("points", "u1", (4,)), ("signs_and_scale", "<u4")])
LAYOUT = np.dtype([("d", "<f2"), ("qs", RUN, (8,))])
LATTICE = LatticeGrid(load_points("IQ2_XXS", 8), size=32, shared_signs=True)


def fit(x: F32, importance: F32 | None) -> Blocks:
    """(256, n) float32 -> (n,) blocks with d and the scales set."""
    blocks = np.zeros(x.shape[1], LAYOUT)
    blocks["d"], multiples = fit_scales(x, importance, LATTICE)
    store(blocks, multiples, multiples)
    return blocks


def store(blocks: Blocks, multiples: F32, _: F32) -> None:
    """Write the runs' scales in units of d, (8, n), odd."""
    signs = blocks["qs"]["signs_and_scale"] & np.uint32((1 << 28) - 1)
    blocks["qs"]["signs_and_scale"] = signs | (to_steps(multiples).astype(np.uint32) << 28).T


def scales(blocks: Blocks) -> F32:
    """(n,) blocks -> (8, n) float32."""
    steps: U32 = blocks["qs"]["signs_and_scale"] >> np.uint32(28)
    return unit_scales(blocks["d"], steps.T)


def pack(blocks: Blocks, codes: LatticeCodes) -> None:
    """Write the numbers of the points, (32, n), and the signs below the scales."""
    blocks["qs"]["points"] = codes.points.T.reshape(-1, 8, 4)
    steps = blocks["qs"]["signs_and_scale"] >> 28 << 28
    blocks["qs"]["signs_and_scale"] = steps | pack_seven_signs(codes.signs).T


FORMAT = Format(
    "IQ2_XXS",
    LAYOUT,
    fit,
    pack,
    lattice=LATTICE,
    scales=scales,
    store=store,
    step_codes=STEP_CODES,
)
