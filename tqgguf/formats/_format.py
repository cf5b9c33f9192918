"""What a GGUF tensor type is: the layout of one block and the three steps that fill it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from tqgguf.kernels.dtypes import F32, Blocks
from tqgguf.kernels.lattice import LatticeGrid
from tqgguf.kernels.lattice import nearest as nearest_points
from tqgguf.kernels.scales import as_groups, from_groups
from tqgguf.kernels.search import nearest

Codes = Any  # what `codes` hands to `pack`: (block_size, n) uint8, or LatticeCodes
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
    step and offset, each (block_size // group_size, n) float32. The plain floats have none.

    A lattice type has a lattice instead (tqgguf.kernels.lattice.LatticeGrid) and says with
    scales(blocks) -> (block_size // lattice.size, n) float32 what the codes are multiplied by. Its
    codes are LatticeCodes, and whole octets can be coded on their own, in the order of the block:

        codes = nearest(x[:8], scales(blocks)[:1], importance[:8], lattice)
        values = decode(codes, scales(blocks)[:1], lattice)  # (8, n), as the reader will see them
        pack(blocks, LatticeCodes.join([codes of octet 0, of octet 1, ...]))

    A type whose groups have integer scales under the block's d and dmin (step = d * code, offset =
    -dmin * code) says in step_codes and offset_codes which integers, (lowest, highest), and writes
    them with store(blocks, step codes, offset codes), each (groups, n); error feedback refits them.
    A lattice type's step codes are odd, its runs of lattice.size weights the groups.
    """

    name: str
    layout: np.dtype[np.void]
    fit: Callable[[F32, F32 | None], Blocks]
    pack: Callable[[Blocks, Codes], None]
    levels: F32 | None = None
    group_size: int = 1
    grid: Callable[[Blocks], Grid] | None = None
    lattice: LatticeGrid | None = None
    scales: Callable[[Blocks], F32] | None = None
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

        x: (block_size, n) float32 -> (block_size, n) uint8 indices into levels; LatticeCodes for a
        lattice type, the only one for which importance matters here.
        """
        if self.lattice is not None and self.scales is not None:
            return nearest_points(x, self.scales(blocks), importance, self.lattice)
        if self.grid is None or self.levels is None:
            return np.empty((0, len(blocks)), np.uint8)
        step, offset = (value.reshape(-1) for value in self.grid(blocks))
        codes = nearest(as_groups(x, self.group_size), step, offset, self.levels)
        return from_groups(codes, len(blocks))

    def encode(self, x: F32, importance: F32 | None = None) -> Blocks:
        """Fit, round and pack: (block_size, n) float32 -> (n,) blocks.

        Raises WeightError where a block needs a scale beyond float16.
        """
        blocks = self.fit(x, importance)
        self.pack(blocks, self.codes(x, blocks, importance))
        return blocks
