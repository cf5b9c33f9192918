"""F16: IEEE half precision, rounded to nearest."""

import numpy as np

from tqgguf.errors import WeightError
from tqgguf.formats._format import Codes, Format
from tqgguf.kernels.dtypes import F32, Blocks

LAYOUT = np.dtype([("w", "<f2")])


def fit(x: F32, importance: F32 | None) -> Blocks:  # noqa: ARG001  each weight stands alone
    """(1, n) float32 -> (n,) blocks."""
    if np.abs(x).max(initial=0) >= 65520:  # rounds to infinity
        raise WeightError(f"a weight of {np.abs(x).max():.4g} is beyond 65504; use BF16 or F32")
    blocks: Blocks = x[0].astype("<f2").view(LAYOUT)
    return blocks


def pack(blocks: Blocks, codes: Codes) -> None:
    """Do nothing: fit has stored the weights."""


FORMAT = Format("F16", LAYOUT, fit, pack)
