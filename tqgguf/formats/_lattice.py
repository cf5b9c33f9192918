"""Types whose weights share, eight or four together, an index into a list of points."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf import quants

from tqgguf.formats._format import Format
from tqgguf.kernels.dtypes import F16, F32, U8, U32, Blocks
from tqgguf.kernels.feedback import Moments
from tqgguf.kernels.lattice import LatticeCodes, pack_nibbles, unpack_nibbles
from tqgguf.kernels.lattice_feedback import round_matrix
from tqgguf.kernels.lattice_scales import fit_scales
from tqgguf.kernels.protocols import Lattice
from tqgguf.kernels.search import reciprocal

_EMPHASIZED = 3.0  # bits below which it helps (docs/decisions/0037)


def read_half(blocks: Blocks) -> F16:
    """The scale of a type that has it in the field d: (n,) blocks -> (n,)."""
    return np.asarray(blocks["d"])


def write_half(blocks: Blocks, d: F16) -> None:
    """Undo `read_half`."""
    blocks["d"] = d


@dataclass(frozen=True)
class LatticeFormat(Format):
    """A type of 256 weights to the block: w = d * (2 * step + 1) * sign * coordinate of a point.

    Each run of lattice.size weights has a step: read_steps(blocks) -> (runs, n), and
    write_steps(blocks, steps) stores them. pack(blocks, codes) writes the code fields. read_d and
    write_d: of a type whose d is no field. fit_scales: what finds d and the steps' multiples.

    Whole octets can be coded on their own, in the order of the block:

        codes = lattice.nearest(x[:8], scales(blocks)[:1], importance[:8])
        values = lattice.decode(codes, scales(blocks)[:1])  # (8, n), as the reader will see them
        pack(blocks, LatticeCodes.join([codes of octet 0, of octet 1, ...]))
    """

    lattice: Lattice
    read_steps: Callable[[Blocks], U8 | U32]
    write_steps: Callable[[Blocks, U8], None]
    pack: Callable[[Blocks, LatticeCodes], None]
    fit_scales: Callable[[F32, F32 | None, Any], tuple[F16, F32]] = fit_scales
    read_d: Callable[[Blocks], F16] = read_half
    write_d: Callable[[Blocks, F16], None] = write_half

    def fit(self, x: F32, importance: F32 | None) -> Blocks:
        """(256, n) float32 -> (n,) blocks with d and the scales set."""
        blocks = np.zeros(x.shape[1], self.layout)
        d, multiples = self.fit_scales(x, importance, self.lattice)
        self.write_d(blocks, d)
        self.store(blocks, multiples)
        return blocks

    def store(self, blocks: Blocks, multiples: F32) -> None:
        """Write the runs' scales in units of d, (runs, n), odd."""
        self.write_steps(blocks, self.lattice.steps(multiples))

    def scales(self, blocks: Blocks) -> F32:
        """What the points are multiplied by: (n,) blocks -> (runs, n) float32."""
        return self.read_d(blocks).astype(np.float32) * self.multiples(blocks)

    def multiples(self, blocks: Blocks) -> F32:
        """The same in units of d, odd."""
        return self.lattice.multiples(self.read_steps(blocks))

    def codes(self, x: F32, blocks: Blocks, importance: F32 | None = None) -> LatticeCodes:
        """The nearest codes under the blocks' scales; x and importance: (256, n) float32."""
        return self.lattice.nearest(x, self.scales(blocks), importance)

    def encode(self, x: F32, importance: F32 | None = None) -> Blocks:
        """Fit, round and pack: (256, n) float32 -> (n,) blocks.

        Where importance is known, errors of large weights count more than it says: at one and two
        bits least squares shrinks all, which costs more divergence than it saves error.
        """
        if importance is not None and self.bits_per_weight < _EMPHASIZED:
            importance = importance * emphasis(x)
        blocks = self.fit(x, importance)
        self.pack(blocks, self.codes(x, blocks, importance))
        return blocks

    def encode_matrix(self, w: F32, moments: Moments, *, sweeps: int) -> Blocks:
        """Octet by octet with feedback: (n_in, n) float32 -> (n_in / 256, n) blocks."""
        return round_matrix(w, moments, self, sweeps=sweeps)[0]


def emphasis(x: F32) -> F32:
    """sqrt(1 + x^2 / mean of x^2) of every weight: (256, n) -> like it, 1 in blocks of zeros."""
    squares: F32 = np.multiply(x, x, order="C")  # the order of a sum follows from the layout
    squares *= reciprocal(squares.mean(axis=0))
    squares += np.float32(1)
    return np.sqrt(squares, out=squares)


def load_points(name: str, unit: float) -> F32:
    """The points of a type in units of d * (2 * step + 1), as gguf-py holds them: (m, k) float32.

    unit: what the formula divides gguf's integers by, a power of two, so nothing is rounded.
    """
    codec: Any = getattr(quants, name)
    codec.init_grid()
    grid: F32 = np.asarray(codec.grid, np.float32).reshape(codec.grid_shape)
    points: F32 = (grid / unit).astype(np.float32)
    points.setflags(write=False)
    return points


def read_nibbles(blocks: Blocks) -> U8:
    """The steps of a type that has them in nibbles, in the field scales."""
    return unpack_nibbles(blocks["scales"].T)


def write_nibbles(blocks: Blocks, steps: U8) -> None:
    """Undo `read_nibbles`."""
    blocks["scales"] = pack_nibbles(steps).T


def top_nibbles(words: U32) -> U32:
    """The steps of a type that has them above 28 bits of signs: (n, runs) -> (runs, n)."""
    steps: U32 = words >> np.uint32(28)
    return steps.T


def with_top_nibbles(words: U32, steps: U8) -> U32:
    """The words with other steps, (runs, n)."""
    signs = words & np.uint32((1 << 28) - 1)
    return signs | (steps.astype(np.uint32) << np.uint32(28)).T
