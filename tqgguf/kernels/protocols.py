"""What kernels ask of `tqgguf.formats`, which they cannot import; it is explained there."""

from collections.abc import Callable
from typing import Protocol

import numpy as np

from tqgguf.kernels.dtypes import F32, U8, Blocks
from tqgguf.kernels.lattice import LatticeCodes, LatticeGrid

Limits = tuple[int, int]  # the lowest and highest code


class ScalarFormat(Protocol):
    """A `tqgguf.formats.ScalarFormat`."""

    @property
    def block_size(self) -> int:
        """Weights per block."""

    @property
    def group_size(self) -> int:
        """Weights that share a step and an offset."""

    @property
    def levels(self) -> F32:
        """What codes stand for, ascending."""

    @property
    def step_codes(self) -> Limits | None:
        """The integers that multiply d."""

    @property
    def offset_codes(self) -> Limits | None:
        """The integers that multiply -dmin."""

    @property
    def store(self) -> Callable[[Blocks, F32, F32], None] | None:
        """Write the groups' integers, of a type that has them."""

    def fit(self, x: F32, importance: F32 | None, /) -> Blocks:
        """Blocks whose scales are set."""

    def grid(self, blocks: Blocks, /) -> tuple[F32, F32]:
        """The groups' steps and offsets."""

    def pack(self, blocks: Blocks, codes: U8, /) -> None:
        """Write the codes."""


class LatticeFormat(Protocol):
    """A `tqgguf.formats.LatticeFormat`."""

    @property
    def layout(self) -> np.dtype[np.void]:
        """One block."""

    @property
    def lattice(self) -> LatticeGrid:
        """The points."""

    def fit(self, x: F32, importance: F32 | None) -> Blocks:
        """Blocks whose scales are set."""

    def scales(self, blocks: Blocks) -> F32:
        """What the points of every run are multiplied by."""

    def store(self, blocks: Blocks, multiples: F32) -> None:
        """Write what multiplies d."""

    def pack(self, blocks: Blocks, codes: LatticeCodes, /) -> None:
        """Write the codes."""
