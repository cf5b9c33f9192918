"""Q8_0: 32 weights share one scale; w = d * q, q in -127..127."""

import numpy as np

from tqgguf.formats._format import Codes, Format, Grid
from tqgguf.kernels.dtypes import F32, Blocks
from tqgguf.kernels.scales import to_half

LAYOUT = np.dtype([("d", "<f2"), ("qs", "i1", (32,))])
LEVELS = np.arange(-127, 128, dtype=np.float32)


def fit(x: F32, importance: F32 | None) -> Blocks:  # noqa: ARG001  the range decides, not the error
    """(32, n) float32 -> (n,) blocks with d set."""
    blocks = np.zeros(x.shape[1], LAYOUT)
    blocks["d"] = to_half(np.maximum(x.max(axis=0), -x.min(axis=0)) / np.float32(127))
    return blocks


def grid(blocks: Blocks) -> Grid:
    """(n,) blocks -> step and offset, (1, n) float32 each."""
    step = blocks["d"].astype(np.float32)[None]
    return step, np.zeros_like(step)


def pack(blocks: Blocks, codes: Codes) -> None:
    """Write codes, (32, n) uint8 indices into the levels, as signed bytes."""
    blocks["qs"] = (codes - np.uint8(127)).view(np.int8).T


FORMAT = Format("Q8_0", LAYOUT, fit, pack, LEVELS, 32, grid)
