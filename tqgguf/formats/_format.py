"""What a GGUF tensor type is: the layout of one block, and how weights become blocks."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from tqgguf.ggml import TYPES
from tqgguf.kernels.dtypes import F32, Blocks
from tqgguf.kernels.feedback import Moments

Direct = Callable[[F32, Blocks], None]  # weights, (n, block_size), into blocks, (n,)


@dataclass(frozen=True)
class Format(ABC):
    """A GGUF tensor type: FloatFormat, ScalarFormat, LatticeFormat, or a kind of its own.

    Kernels work element-major: x is (block_size, n) float32, one column per block, so that sums
    and maxima over a block run along axis 0. is_scaled: whether a float32 scale of the whole matrix
    belongs to it, in a tensor of its own; what is encoded are weights divided by that. quick and
    plain: encoders without importance, of blocks as they lie in memory; quick tries little, plain
    takes the place of `encode` because it is as good and faster.
    """

    name: str
    layout: np.dtype[np.void]
    is_scaled: bool = field(default=False, kw_only=True)
    quick: Direct | None = field(default=None, kw_only=True)
    plain: Direct | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.layout.itemsize != self.type_size:
            raise AssertionError((self.name, self.layout.itemsize, self.type_size))

    @property
    def block_size(self) -> int:
        """Weights per block."""
        return TYPES[self.name].weights

    @property
    def type_size(self) -> int:
        """Bytes per block."""
        return TYPES[self.name].bytes

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight, scales included."""
        return 8 * self.type_size / self.block_size

    @abstractmethod
    def encode(self, x: F32, importance: F32 | None = None) -> Blocks:
        """The blocks of least error: (block_size, n) float32 -> (n,) blocks.

        importance: (block_size, n) float32 >= 0 weighs the squared error, None for plain least
        squares. Raises WeightError where a weight, or the scale a block needs, has no code.
        """

    @abstractmethod
    def encode_matrix(self, w: F32, moments: Moments, *, sweeps: int) -> Blocks:
        """Encode so that the matrix's output changes least (`tqgguf.kernels.feedback`).

        w: (n_in, n) float32, one column per row of the matrix -> (n_in / block_size, n) blocks.
        """
