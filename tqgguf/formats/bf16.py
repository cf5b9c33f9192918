"""BF16: the upper half of a float32, rounded to nearest even."""

import numpy as np

from tqgguf.errors import WeightError
from tqgguf.formats._format import Codes, Format
from tqgguf.kernels.dtypes import F32, Blocks

LAYOUT = np.dtype([("w", "<u2")])


def fit(x: F32, importance: F32 | None) -> Blocks:  # noqa: ARG001  each weight stands alone
    """(1, n) float32 -> (n,) blocks."""
    if np.abs(x).max(initial=0) >= 3.3961775e38:  # rounds to infinity
        raise WeightError(f"a weight of {np.abs(x).max():.4g} is beyond bfloat16; use F32")
    bits = np.ascontiguousarray(x[0]).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
    return (rounded >> np.uint32(16)).astype("<u2").view(LAYOUT)


def pack(blocks: Blocks, codes: Codes) -> None:
    """Do nothing: fit has stored the weights."""


FORMAT = Format("BF16", LAYOUT, fit, pack)
