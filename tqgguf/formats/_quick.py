"""Encoders at reading speed: of few candidates, or of no importance."""

from collections.abc import Callable

import numpy as np

from tqgguf.formats._format import Direct, Format
from tqgguf.formats._tensor import element_major
from tqgguf.kernels.dtypes import F32, Blocks
from tqgguf.kernels.quick import Strip, strips

_PIECE = 5 << 16  # weights at a time


def by_strips(fill: Callable[[Strip, Blocks], None]) -> Direct:
    """An encoder that fills blocks a strip at a time."""

    def encode(rows: F32, blocks: Blocks) -> None:
        with np.errstate(over="ignore", invalid="ignore"):  # scales are looked at
            for here, strip in strips(rows):
                fill(strip, blocks[here])

    return encode


def by(fmt: Format) -> Direct:
    """The encoder of a format of the same blocks that tries less."""

    def encode(rows: F32, blocks: Blocks) -> None:
        step = _PIECE // fmt.block_size
        for here in (slice(at, at + step) for at in range(0, len(rows), step)):
            part = rows[here]
            blocks[here] = fmt.encode(element_major(part))[: len(part)]

    return encode
