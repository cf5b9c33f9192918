"""Choose the step (and depth) of small groups of weights by least squares.

Element-major: x is (size, n) float32, one column per group; w is the weight of every element in
the squared error, of the same shape, or None for plain least squares.

Each group is scaled to the grid by its extremes, a few candidate ranges are rounded, and for each
the sums of q, q^2 and q*x give the best step and its error in closed form. Which candidates to
try was found by greedy selection on Gaussian and Student-t(5) groups (docs/LOG.md): the first
brings most, each further one less.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tqgguf.errors import WeightError
from tqgguf.kernels import e4m3
from tqgguf.kernels.arrays import (
    as_half,
    clip,
    constant,
    dot,
    empty,
    in_place,
    is_numpy,
    namespace,
    replace_where,
)
from tqgguf.kernels.dtypes import F16, F32, I32, U8
from tqgguf.kernels.search import reciprocal, snap

_HALF_LIMIT = 65520.0  # from here on float16 rounds to infinity
TERNARY_BEGIN = np.float32(0.77)  # what makes it the best ternary scale of Gaussian weights
TERNARY_ROUNDS = 2
_TRIED = 1 << 16  # numbers that are tried at once: a call takes some time however few there are
_INSIDE = 0.49  # steps that an end of a range may move inwards before a code leaves 0..levels

Ranges = tuple[tuple[float, float], ...]


class Sums(NamedTuple):
    """What the error of a group depends on once its codes q are chosen: (n,) float32 each.

    error = step^2 qq - 2 step depth q + depth^2 total - 2 step qx + 2 depth x + constant
    """

    q: F32
    qq: F32
    qx: F32
    x: F32
    total: F32

    def reshape(self, groups: int) -> "Sums":
        """The sums as (groups, n) each."""
        reshape = namespace(self.q).reshape
        return Sums(*(reshape(value, (groups, -1)) for value in self))


def as_groups(x: NDArray[Any], size: int) -> NDArray[Any]:
    """Make each run of `size` elements a column of its own.

    x: (groups * size, n) -> (size, groups * n), column g * n + j holding group g of block j.
    """
    xp = namespace(x)
    runs = xp.permute_dims(xp.reshape(x, (-1, size, x.shape[1])), (1, 0, 2))
    groups: NDArray[Any] = xp.reshape(runs, (size, -1))
    return groups


def from_groups(codes: NDArray[Any], n: int) -> NDArray[Any]:
    """Undo `as_groups`: (size, groups * n) -> (groups * size, n)."""
    return codes.reshape(len(codes), -1, n).swapaxes(0, 1).reshape(-1, n)


def signed_peak(x: F32) -> F32:
    """The element of largest magnitude of every column, with its sign: (size, n) -> (n,)."""
    xp = namespace(x)
    high, low = xp.max(x, axis=0), xp.min(x, axis=0)
    peak: F32 = xp.where(high > -low, high, low)
    return peak


def to_half(scale: F32) -> F16:
    """float32 -> float16 of the same shape; WeightError where a scale does not fit."""
    largest = float(np.abs(scale).max(initial=0))
    if not largest < _HALF_LIMIT:
        raise WeightError(
            f"a block needs a scale of {largest:.4g}, but float16 ends at 65504; use BF16 or F32"
        )
    return scale.astype(np.float16)


def halved(scale: F32) -> F32:
    """The same in float32; a scale that does not fit becomes infinite in another library."""
    rounded: F32 = to_half(scale).astype(np.float32) if is_numpy(scale) else as_half(scale)
    return rounded


def symmetric(x: F32, w: F32 | None, *, levels: F32, factors: tuple[float, ...]) -> tuple[F32, F32]:
    """Sums of q*x and q*q of the best codes q on the grid step * levels: (size, n) -> two (n,).

    The best step is their quotient. A factor of 1 lays the element of largest magnitude on
    levels[0], a negative one on the other side.
    """
    xp = namespace(x)
    multiply, unit = in_place(xp.multiply), signed_peak(x) / float(levels[0])
    u = x * reciprocal(unit)
    weighted = u if w is None else u * w
    tried = empty((len(factors), 2, x.shape[1]), x)
    each = max(1, _TRIED // (x.shape[0] * x.shape[1]))
    for at in range(0, len(factors), each):
        some = factors[at : at + each]
        found, q = tried[at : at + len(some), ...], empty((len(some), *x.shape), x)
        for i, factor in enumerate(some):
            multiply(u, constant(factor, u), out=q[i, ...])
        snap(q, levels, out=q)
        dot(q, weighted, out=found[:, 0, :])
        dot(q, q if w is None else q * w, out=found[:, 1, :])
    qu, qq = tried[:, 0, :], tried[:, 1, :]
    best = pick(tried, qu * qu * reciprocal(qq))
    return best[0, :] * unit, best[1, :]


def affine(x: F32, w: F32 | None, *, levels: int, ranges: Ranges, signed: bool = False) -> Sums:
    """Sums of the best codes q, 0..levels, on the grid step * q - depth: (size, n) -> (n,) each.

    A range (a, b) lets the grid start a steps above the smallest element (zero, if all are
    positive and the depth must not be negative) and end b steps below the largest.
    """
    xp = namespace(x)
    multiply, low = in_place(xp.multiply), xp.min(x, axis=0)
    if not signed:
        low = xp.minimum(low, constant(0, x))
    unit = (xp.max(x, axis=0) - low) / levels
    u = x - low
    u *= reciprocal(unit)
    weighted = u if w is None else u * w
    total, u_sum = _total(x, w), xp.sum(weighted, axis=0)
    tried = empty((len(ranges), 3, x.shape[1]), x)
    q: F32 = xp.empty_like(u)
    for i, (above, below) in enumerate(ranges):
        stretch = levels / (levels - above - below)
        multiply(u, constant(stretch, u), out=q)
        q -= above * stretch
        _round(q, levels if max(above, below) * stretch > _INSIDE else None)
        _sum_codes(q, weighted, w, tried[i, ...])
    sums = Sums(tried[:, 0, :], tried[:, 1, :], tried[:, 2, :], u_sum, total)
    covariance, variance = _spread(sums)
    best = pick(tried, covariance * covariance * reciprocal(variance))
    q_sum, qq, qu = best[0, :], best[1, :], best[2, :]
    return Sums(q_sum, qq, unit * qu + low * q_sum, unit * u_sum + low * total, total)


def affine_pair(x: F32, w: F32 | None, *, levels: int, ranges: Ranges) -> tuple[F16, F16]:
    """Fit w = step * q + offset, q in 0..levels: (size, n) -> step and offset, (n,) float16."""
    sums = affine(x, w, levels=levels, ranges=ranges, signed=True)
    covariance, variance = _spread(sums)
    step = to_half(covariance * reciprocal(variance))
    return step, to_half((sums.x - step.astype(np.float32) * sums.q) * reciprocal(sums.total))


def power_of_two(x: F32, w: F32 | None, *, levels: F32) -> I32:
    """The exponent of the best step 2^exponent on a grid of levels: (size, n) -> (n,) int32.

    Either nothing is clipped, or the largest weights are, on a grid twice as fine. Raises
    WeightError for weights that are NaN or infinite.
    """
    needed = np.abs(x).max(axis=0) / levels[-1]
    if not np.isfinite(needed).all():
        raise WeightError(f"a block needs a scale of {needed.max():.4g}, which no power of two is")
    _, exponent = np.frexp(needed)
    best: I32 = exponent
    least = np.full(x.shape[1], np.inf, np.float32)
    for trial in (exponent, exponent - 1):
        q = np.ldexp(x, -trial)
        np.clip(q, levels[0], levels[-1], out=q)
        snap(q, levels, out=q)
        difference = np.ldexp(q, trial) - x
        error = dot(difference, difference if w is None else difference * w)
        best, least = np.where(error < least, trial, best), np.minimum(error, least)
    return best


def coded_scale(x: F32, w: F32 | None, *, levels: F32, shifts: tuple[int, ...]) -> U8:
    """The code of the best 8-bit float s for w = s / 2 * level: (size, n) -> (n,) uint8.

    Tried are the code that holds the largest weight and those shifts away, then what fits the best
    codes of these best.
    """
    needed = np.abs(x).max(axis=0) * (2 / levels[-1])
    if not needed.max(initial=0) <= e4m3.LARGEST:
        raise WeightError(f"a block needs a scale of {needed.max():.4g}, but 8-bit ones end at 448")
    held = e4m3.encode(needed).astype(np.int16)
    weighted = x if w is None else x * w
    best, least = held.astype(np.uint8), np.full(x.shape[1], np.inf, np.float32)
    q, sums = np.empty_like(x), np.empty((3, x.shape[1]), np.float32)
    kept = np.zeros_like(sums[:2])
    for shift in shifts:
        code = np.clip(held + np.int16(shift), 0, 126).astype(np.uint8)
        step = e4m3.decode(code) * np.float32(0.5)
        np.multiply(x, reciprocal(step), out=q)
        np.clip(q, levels[0], levels[-1], out=q)
        snap(q, levels, out=q)
        dot(q, weighted, out=sums[0])
        dot(q, q if w is None else q * w, out=sums[1])
        error = step * (step * sums[1] - 2 * sums[0])
        better = error < least
        best = np.where(better, code, best)
        np.copyto(kept, sums[:2], where=better)
        np.minimum(least, error, out=least)
    refit = e4m3.encode(np.maximum(2 * kept[0] * reciprocal(kept[1]), np.float32(0)))
    step = e4m3.decode(refit) * np.float32(0.5)
    return np.where(step * (step * kept[1] - 2 * kept[0]) < least, refit, best)


def ternary_scale(x: F32, w: F32 | None) -> F32:
    """The d of w = d * (-1, 0 or 1), by Lloyd's rounds: (size, n) -> (n,).

    They begin at a part of the mean of the magnitudes weighed by their squares: ternary weights are
    met at once, and a few large ones among small ones count as they should.
    """
    top = np.abs(x).max(axis=0)
    a = np.abs(x) * reciprocal(top)  # cubes of what is left neither overflow nor vanish
    weighted = a if w is None else a * w
    energy = a * weighted
    d = dot(energy, a) * (TERNARY_BEGIN * reciprocal(energy.sum(axis=0)))
    for _ in range(TERNARY_ROUNDS):
        far = (a > d / 2).astype(np.float32)
        total = far.sum(axis=0) if w is None else dot(far, w)
        d = dot(far, weighted) * reciprocal(total)
    scale: F32 = d * top
    return scale


def mean_magnitude(x: F32, w: F32 | None) -> F32:
    """The d of w = d * (-1 or 1): (size, n) -> (n,)."""
    a = np.abs(x)
    mean: F32 = (a if w is None else a * w).sum(axis=0) * reciprocal(_total(x, w))
    return mean


def requantize(x: F32, w: F32 | None, sums: Sums, step: F32, depth: F32, *, levels: int) -> Sums:
    """Sums of the codes under given scales: x (size, n), step and depth (n,) -> (n,) each."""
    q = x + depth
    q *= reciprocal(step)
    _round(q, levels)
    new = empty((3, x.shape[1]), x)
    _sum_codes(q, x if w is None else x * w, w, new)
    return Sums(new[0, :], new[1, :], new[2, :], sums.x, sums.total)


def solve(sums: Sums) -> tuple[F32, F32]:
    """The step and depth >= 0 with the least error: sums -> two arrays of their shape."""
    covariance, variance = _spread(sums)
    step = covariance * reciprocal(variance)
    depth = (step * sums.q - sums.x) * reciprocal(sums.total)
    xp, zero = namespace(step), constant(0, step)
    step = xp.where(depth < 0, sums.qx * reciprocal(sums.qq), step)
    return xp.maximum(step, zero), xp.maximum(depth, zero)


def pick(tried: F32, score: F32) -> F32:
    """The candidate with the highest score of each column; tried is used up.

    tried: (k, m, ..., n), score: (k, ..., n) -> (m, ..., n) float32.
    """
    xp = namespace(tried)
    best: F32 = tried[0, ...]
    highest = xp.max(score, axis=0)
    for i in range(1, tried.shape[0]):  # argmax over axis 0 is far slower
        replace_where(best, score[i, ...] == highest, tried[i, ...])
    return best


def _spread(sums: Sums) -> tuple[F32, F32]:
    """Covariance of codes and weights, and variance of the codes, times the total weight."""
    mean = sums.q * reciprocal(sums.total)
    return sums.qx - mean * sums.x, sums.qq - mean * sums.q


def _sum_codes(q: F32, weighted: F32, w: F32 | None, out: F32) -> None:
    """Write the sums of w*q, w*q*q and q*weighted over axis 0: (size, n) -> out (3, n)."""
    heavy = q if w is None else q * w
    if is_numpy(q):
        np.add.reduce(heavy, axis=0, out=out[0])
    else:
        out[0, :] = namespace(q).sum(heavy, axis=0)
    dot(heavy, q, out=out[1, :])
    dot(q, weighted, out=out[2, :])


def _round(q: F32, levels: int | None) -> None:
    """To whole numbers in place, and to 0..levels where there is an end to them."""
    if is_numpy(q):
        np.rint(q, out=q)
        if levels is not None:
            np.clip(q, np.float32(0), np.float32(levels), out=q)
        return
    whole = namespace(q).round(q)
    q[...] = whole if levels is None else clip(whole, 0, levels)


def _total(x: F32, w: F32 | None) -> F32:
    xp = namespace(x)
    if w is None:
        same: F32 = xp.full(x.shape[1], x.shape[0], dtype=x.dtype, device=x.device)
        return same
    total: F32 = xp.sum(w, axis=0)
    return total
