"""What kernels ask of `tqgguf.formats`, which they cannot import; it is explained there."""

from collections.abc import Callable
from typing import Protocol

import numpy as np

from tqgguf.kernels.dtypes import F16, F32, U8, U32, Blocks
from tqgguf.kernels.lattice import LatticeCodes

Runner = Callable[..., None]  # runs the first argument on the others, arrays it may change
Limits = tuple[int, int]  # the lowest and highest code
Choice = tuple[F32, ...]  # d; with the groups' integers, (groups, n); with dmin and its integers


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

    @property
    def layout(self) -> np.dtype[np.void]:
        """One block."""

    @property
    def choose(self) -> Callable[[F32, F32 | None], Choice] | None:
        """The scales that fit writes, in any library's arrays."""

    def fit(self, x: F32, importance: F32 | None, /) -> Blocks:
        """Blocks whose scales are set."""

    def grid(self, blocks: Blocks, /) -> tuple[F32, F32]:
        """The groups' steps and offsets."""

    def pack(self, blocks: Blocks, codes: U8, /) -> None:
        """Write the codes."""


class Lattice(Protocol):
    """A `LatticeGrid` or a `TernaryGrid`: points, and how weights share scales."""

    @property
    def k(self) -> int:
        """Weights per point."""

    @property
    def size(self) -> int:
        """Weights that share a scale."""

    @property
    def highest(self) -> int:
        """The highest step of a scale."""

    def multiples(self, steps: U8 | U32) -> F32:
        """What multiplies d, by steps."""

    def steps(self, multiples: F32) -> U8:
        """The steps, by what multiplies d."""

    def nearest(self, x: F32, scale: F32, w: F32 | None) -> LatticeCodes:
        """The nearest codes under given scales."""

    def decode(self, codes: LatticeCodes, scale: F32) -> F32:
        """The values the reader will see."""


class LatticeFormat(Protocol):
    """A `tqgguf.formats.LatticeFormat`."""

    @property
    def layout(self) -> np.dtype[np.void]:
        """One block."""

    @property
    def lattice(self) -> Lattice:
        """The points."""

    def fit(self, x: F32, importance: F32 | None) -> Blocks:
        """Blocks whose scales are set."""

    def scales(self, blocks: Blocks) -> F32:
        """What the points of every run are multiplied by."""

    def multiples(self, blocks: Blocks) -> F32:
        """The same in units of d."""

    @property
    def read_d(self) -> Callable[[Blocks], F16]:
        """The blocks' d."""

    @property
    def write_d(self) -> Callable[[Blocks, F16], None]:
        """Store the blocks' d."""

    def store(self, blocks: Blocks, multiples: F32) -> None:
        """Write what multiplies d."""

    def pack(self, blocks: Blocks, codes: LatticeCodes, /) -> None:
        """Write the codes."""
