"""Encoders at reading speed, for --effort fast: one or two candidates, no importance."""

from collections.abc import Callable

import numpy as np

from tqgguf.formats._format import Format
from tqgguf.formats._tensor import element_major
from tqgguf.kernels.dtypes import F32, Blocks
from tqgguf.kernels.quick import Strip, strips

Quick = Callable[[F32], Blocks]


def by_strips(layout: np.dtype[np.void], fill: Callable[[Strip, Blocks], None]) -> Quick:
    """An encoder of blocks of 32 weights that fill makes, a strip at a time."""

    def encode(rows: F32) -> Blocks:
        blocks = np.empty(len(rows), layout)
        for here, strip in strips(rows):
            fill(strip, blocks[here])
        return blocks

    return encode


def by(fmt: Format) -> Quick:
    """The encoder of a format of the same blocks that tries less."""

    def encode(rows: F32) -> Blocks:
        return fmt.encode(element_major(rows))[: len(rows)]

    return encode
