"""What a GGUF tensor type is: the layout of one block and the three steps that fill it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from tqgguf.kernels.dtypes import F32, Blocks

Codes = Any  # whatever `codes` hands to `pack`: usually (block, n) uint8


@dataclass(frozen=True)
class Format:
    """A GGUF tensor type.

    Kernels work element-major: x is (block, n) float32, one column per block, so that sums and
    maxima over a block run along axis 0. The three steps of encoding stay separate because error
    feedback calls them separately:

    * fit(x, importance) -> (n,) blocks whose scale fields are set, as the reader will see them;
      importance is (block, n) float32 >= 0 or None for plain least squares
    * codes(x, blocks) -> the nearest codes under those scales
    * pack(blocks, codes) -> None, writes the code fields of the blocks
    """

    name: str
    layout: np.dtype[np.void]
    fit: Callable[[F32, F32 | None], Blocks]
    codes: Callable[[F32, Blocks], Codes]
    pack: Callable[[Blocks, Codes], None]

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
