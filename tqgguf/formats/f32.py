"""F32: the weights as they are."""

import numpy as np

from tqgguf.formats._format import Codes, Format
from tqgguf.kernels.dtypes import F32, Blocks

LAYOUT = np.dtype([("w", "<f4")])


def fit(x: F32, importance: F32 | None) -> Blocks:  # noqa: ARG001  nothing is rounded
    """(1, n) float32 -> (n,) blocks."""
    blocks: Blocks = x[0].astype("<f4").view(LAYOUT)
    return blocks


def pack(blocks: Blocks, codes: Codes) -> None:
    """Do nothing: fit has stored the weights."""


FORMAT = Format("F32", LAYOUT, fit, pack)
