"""F16: IEEE half precision, rounded to nearest."""

import numpy as np

from tqgguf.formats._format import Codes, Format
from tqgguf.kernels.dtypes import F32, Blocks
from tqgguf.kernels.scales import to_half

LAYOUT = np.dtype([("w", "<f2")])


def fit(x: F32, importance: F32 | None) -> Blocks:  # noqa: ARG001  each weight stands alone
    """(1, n) float32 -> (n,) blocks."""
    return to_half(x[0]).view(LAYOUT)


def pack(blocks: Blocks, codes: Codes) -> None:
    """Do nothing: fit has stored the weights."""


FORMAT = Format("F16", LAYOUT, fit, pack)
