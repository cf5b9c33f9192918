"""One axis of a tensor that a tile is cut from."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from tqgguf.kernels.dtypes import F32

_SLAB = 1 << 18  # weights rotated at a time


@dataclass(frozen=True)
class Axis:
    """The axis a step acts on (0: rows, -1: columns), and where the tile lies in its tensor."""

    axis: int
    first: tuple[int, int]
    shape: tuple[int, ...]

    @property
    def begin(self) -> int:
        """Index of the tile's first row or column."""
        return self.first[self.axis]

    @property
    def size(self) -> int:
        """Rows or columns of the whole matrix, one of those that are stacked."""
        return self.shape[-2] if self.axis == 0 else self.shape[-1]

    @property
    def sizes(self) -> tuple[int, int]:
        """Lengths of a vector for one matrix, and of one for all that are stacked."""
        return self.size, self.size * math.prod(self.shape[:-2])

    def slabs(self, x: F32) -> Iterator[tuple[tuple[slice, slice], "Axis"]]:
        """Cut a tile across this axis: where each slab lies in it, and its place in the tensor."""
        whole, (row, column) = slice(None), self.first
        width = max(1, _SLAB // x.shape[self.axis])
        for at in range(0, x.shape[-1 - self.axis], width):
            cut = slice(at, at + width)
            if self.axis == 0:
                yield (whole, cut), replace(self, first=(row, column + at))
            else:
                yield (cut, whole), replace(self, first=(row + at, column))

    def facing(self, x: F32, vector: F32) -> F32:
        """What multiplies a tile, from a vector for one matrix or one for each that is stacked."""
        at = np.arange(self.begin, self.begin + x.shape[self.axis])
        if self.axis == 0:
            return np.take(vector, at, mode="wrap")[:, None]
        if vector.size == self.size:
            return vector[at]
        stacked = (self.first[0] + np.arange(len(x))) // self.shape[-2]
        return vector.reshape(-1, self.size)[stacked[:, None], at]
