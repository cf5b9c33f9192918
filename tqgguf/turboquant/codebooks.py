"""Lloyd-Max codebooks: the scalar quantizers with the least mean squared error for a given law.

Two laws are built in: N(0, 1), and the exact law of one coordinate of a uniformly random unit
vector in `dim` dimensions, whose density is proportional to (1 - x^2)^((dim - 3) / 2), that is
Beta((dim - 1)/2, (dim - 1)/2) stretched to [-1, 1]. As dim grows, sqrt(dim) times the coordinate
tends to N(0, 1).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from tqgguf.errors import ShapeError
from tqgguf.kernels.dtypes import F32, F64, U8

MAX_BITS = 8  # one code, one byte
_TAIL = 12.0  # standard deviations; the mass beyond is below 1e-30
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(128)


@dataclass(frozen=True)
class Law:
    """A symmetric distribution: functions of x, (k,) float64 -> (k,) float64, and its variance.

    moment(x) is the integral of t density(t) from minus infinity to x.
    """

    density: Callable[[F64], F64]
    cdf: Callable[[F64], F64]
    moment: Callable[[F64], F64]
    variance: float
    limit: float  # the support, or as much of it as matters, is [-limit, limit]


@dataclass(frozen=True)
class Codebook:
    """Levels in ascending order, the boundaries halfway between them, and the error they reach.

    levels: (2^bits,) float64, boundaries: (2^bits - 1,) float64, mse: E (x - nearest level)^2.
    """

    levels: F64
    boundaries: F64
    mse: float

    def encode(self, x: F32) -> U8:
        """The index of the nearest level: (...) float32 -> (...) uint8."""
        codes = np.zeros(x.shape, np.uint8)
        for boundary in self.boundaries.astype(np.float32):  # 7 comparisons beat a binary search
            codes += x > boundary
        return codes

    def decode(self, codes: U8) -> F32:
        """The levels the codes stand for: (...) uint8 -> (...) float32."""
        return np.take(self.levels.astype(np.float32), codes)


def gaussian() -> Law:
    """The law N(0, 1)."""
    erf = np.vectorize(math.erf, otypes=[np.float64])

    def density(x: F64) -> F64:
        return np.asarray(np.exp(-x * x / 2) / math.sqrt(2 * math.pi))

    return Law(
        density=density,
        cdf=lambda x: (1 + erf(x / math.sqrt(2))) / 2,
        moment=lambda x: -density(x),
        variance=1.0,
        limit=_TAIL,
    )


def sphere_coordinate(dim: int) -> Law:
    """The law of one coordinate of a random unit vector in `dim` >= 2 dimensions.

    With x = sin t the density becomes c cos(t)^(dim - 2) dt, smooth for every dim, so its integral
    is one Gauss-Legendre sum.
    """
    if dim < 2:
        raise ShapeError(f"dim {dim}: a unit vector needs at least 2 coordinates to have a law")
    limit = min(1.0, _TAIL / math.sqrt(dim))
    c = math.exp(math.lgamma(dim / 2) - math.lgamma((dim - 1) / 2)) / math.sqrt(math.pi)

    def cdf(x: F64) -> F64:
        half = np.arcsin(np.clip(x, -limit, limit))[:, None] / 2
        return np.asarray(0.5 + c * (half * np.cos(half * (_NODES + 1)) ** (dim - 2)) @ _WEIGHTS)

    def moment(x: F64) -> F64:
        return np.asarray(-c / (dim - 1) * (1 - x * x) ** ((dim - 1) / 2))

    return Law(
        density=lambda x: c * (1 - x * x) ** ((dim - 3) / 2),
        cdf=cdf,
        moment=moment,
        variance=1 / dim,
        limit=limit,
    )


@cache
def gaussian_codebook(bits: int) -> Codebook:
    """The best 2^bits levels for N(0, 1): mse 0.36338, 0.11748, 0.03455, 0.00950 for 1-4 bits."""
    return lloyd_max(gaussian(), bits=bits)


@cache
def sphere_codebook(bits: int, dim: int) -> Codebook:
    """The best 2^bits levels for a coordinate of a random unit vector; dim x mse is its D_mse."""
    return lloyd_max(sphere_coordinate(dim), bits=bits)


def lloyd_max(law: Law, *, bits: int) -> Codebook:
    """Solve Lloyd's conditions: every level the mean of its cell, every boundary a midpoint.

    bits: 0..8. A few of Lloyd's own iterations come first, then Newton's method, because Lloyd's
    needs about 4^bits of them. Max, IRE Trans. 6 (1960); Lloyd, IEEE Trans. IT-28 (1982).
    """
    if not 0 <= bits <= MAX_BITS:
        raise ShapeError(f"bits {bits}: a code has 0 to {MAX_BITS} bits")
    levels = _spread(law, 2**bits)
    for _ in range(20):
        levels = _cells(law, levels)[1]
    for _ in range(50):
        step = _newton_step(law, levels)
        levels = levels - step
        if np.max(np.abs(step)) < 1e-6 * law.limit:
            break  # convergence is quadratic: what is left is about the square of that
    levels = (levels - levels[::-1]) / 2  # symmetric to the last bit
    mass, means = _cells(law, levels)
    mse = law.variance - float(np.sum(mass * means**2))
    return Codebook(_frozen(levels), _frozen(_midpoints(levels)), mse)


def _spread(law: Law, count: int) -> F64:
    """Levels at the quantiles of density^(1/3), the best spacing when there are many."""
    x = np.linspace(-law.limit, law.limit, 8001)[1:-1]
    # the tails of the normal law limit how far out any level can lie
    weight = np.cumsum(np.minimum(law.density(x), 1e6) ** (1 / 3))
    return np.interp((np.arange(count) + 0.5) / count, weight / weight[-1], x)


def _midpoints(levels: F64) -> F64:
    return np.asarray((levels[1:] + levels[:-1]) / 2)


def _cells(law: Law, levels: F64) -> tuple[F64, F64]:
    """The probability and the mean of every level's cell, two (count,) float64."""
    edges = _midpoints(levels)
    mass = np.diff(law.cdf(edges), prepend=0.0, append=1.0)
    means = np.diff(law.moment(edges), prepend=0.0, append=0.0) / mass
    return mass, means


def _newton_step(law: Law, levels: F64) -> F64:
    """The step that solves levels = means(levels) to first order; the Jacobian is tridiagonal."""
    edges = _midpoints(levels)
    mass, means = _cells(law, levels)
    # moving an edge outward by e moves the mean of the cell by density (edge - mean) e / mass,
    # and moving a level moves the two edges beside it by half as much
    upper = law.density(edges) * (edges - means[:-1]) / mass[:-1] / 2
    lower = law.density(edges) * (means[1:] - edges) / mass[1:] / 2
    slope = np.diag(np.append(upper, 0) + np.append(0, lower)) + np.diag(upper, 1)
    jacobian = np.eye(len(levels)) - slope - np.diag(lower, -1)
    return np.asarray(np.linalg.solve(jacobian, levels - means))


def _frozen(x: F64) -> F64:
    x.setflags(write=False)
    return x
