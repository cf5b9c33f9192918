"""What a GGUF tensor type is: the layout of one block and the three steps that fill it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from tqgguf.kernels.dtypes import F32, Blocks
from tqgguf.kernels.search import nearest

Codes = Any  # whatever `codes` hands to `pack`: (block_size, n) uint8 unless the type is a lattice
Grid = tuple[F32, F32]


@dataclass(frozen=True)
class Format:
    """A GGUF tensor type.

    Kernels work element-major: x is (block_size, n) float32, one column per block, so that sums
    and maxima over a block run along axis 0. The three steps of encoding stay separate because
    error feedback calls them separately:

    * fit(x, importance) -> (n,) blocks whose scale fields are set, as the reader will see them;
      importance is (block_size, n) float32 >= 0, or None for plain least squares
    * codes(x, blocks, importance) -> the nearest codes under those scales
    * pack(blocks, codes) -> None, writes the code fields of the blocks

    A scalar type says what its codes mean: weight e of block j decodes to
    step[e // group_size, j] * levels[code] + offset[e // group_size, j], where grid(blocks) gives
    step and offset, each (block_size // group_size, n) float32. A lattice type has neither levels
    nor grid and brings its own search(x, blocks, importance) -> codes. The plain floats have none.

    A type whose groups have integer scales under the block's d and dmin (step = d * code, offset =
    -dmin * code) says in step_codes and offset_codes which integers, (lowest, highest), and writes
    them with store(blocks, step codes, offset codes), each (groups, n); error feedback refits them.
    """

    name: str
    layout: np.dtype[np.void]
    fit: Callable[[F32, F32 | None], Blocks]
    pack: Callable[[Blocks, Codes], None]
    levels: F32 | None = None
    group_size: int = 1
    grid: Callable[[Blocks], Grid] | None = None
    search: Callable[[F32, Blocks, F32 | None], Codes] | None = None
    store: Callable[[Blocks, F32, F32], None] | None = None
    step_codes: tuple[int, int] | None = None
    offset_codes: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.layout.itemsize != self.type_size:
            raise AssertionError((self.name, self.layout.itemsize, self.type_size))

    @property
    def qtype(self) -> GGMLQuantizationType:
        """The type's number in GGUF."""
        return GGMLQuantizationType[self.name]

    @property
    def block_size(self) -> int:
        """Weights per block."""
        return int(GGML_QUANT_SIZES[self.qtype][0])

    @property
    def type_size(self) -> int:
        """Bytes per block."""
        return int(GGML_QUANT_SIZES[self.qtype][1])

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight, scales included."""
        return 8 * self.type_size / self.block_size

    def codes(self, x: F32, blocks: Blocks, importance: F32 | None = None) -> Codes:
        """The nearest codes under the blocks' scales.

        x: (block_size, n) float32 -> (block_size, n) uint8 indices into levels; a lattice type
        weighs the distance with importance and returns what its pack understands.
        """
        if self.search is not None:
            return self.search(x, blocks, importance)
        if self.grid is None or self.levels is None:
            return np.empty((0, len(blocks)), np.uint8)
        step, offset = self.grid(blocks)
        groups = x.reshape(len(step), -1, len(blocks))
        return nearest(groups, step[:, None], offset[:, None], self.levels).reshape(x.shape)

    def encode(self, x: F32, importance: F32 | None = None) -> Blocks:
        """Fit, round and pack: (block_size, n) float32 -> (n,) blocks.

        Raises WeightError where a block needs a scale beyond float16.
        """
        blocks = self.fit(x, importance)
        self.pack(blocks, self.codes(x, blocks, importance))
        return blocks
