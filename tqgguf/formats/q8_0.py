"""Q8_0: 32 weights share one scale; w = d * q, q in -127..127."""

import numpy as np

from tqgguf.formats._block import scale_grid
from tqgguf.formats._quick import by_strips
from tqgguf.formats._scalar import ScalarFormat
from tqgguf.kernels import quick
from tqgguf.kernels.dtypes import F32, U8, Blocks
from tqgguf.kernels.quick import Strip
from tqgguf.kernels.scales import to_half

LAYOUT = np.dtype([("d", "<f2"), ("qs", "i1", (32,))])
LEVELS = np.arange(-127, 128, dtype=np.float32)


def fit(x: F32, importance: F32 | None) -> Blocks:  # noqa: ARG001  the range decides, not the error
    """(32, n) float32 -> (n,) blocks with d set."""
    blocks = np.zeros(x.shape[1], LAYOUT)
    blocks["d"] = to_half(np.maximum(x.max(axis=0), -x.min(axis=0)) / np.float32(127))
    return blocks


def pack(blocks: Blocks, codes: U8) -> None:
    """Write codes, (32, n) uint8 indices into the levels, as signed bytes."""
    blocks["qs"] = (codes - np.uint8(127)).view(np.int8).T


def fill(strip: Strip, blocks: Blocks) -> None:
    """Encode a strip."""
    low, high = quick.extremes(strip.y)
    blocks["d"] = to_half(np.maximum(high, -low) * np.float32(1 / 127))
    quick.store(quick.signed_codes(strip, blocks["d"]), blocks["qs"])


FORMAT = ScalarFormat(
    *("Q8_0", LAYOUT, LEVELS),
    group_size=32,
    fit=fit,
    grid=scale_grid,
    pack=pack,
    quick=by_strips(fill),
)
