"""Choose the scales of small groups of weights by least squares.

Everything is element-major: x is (size, n) float32, one column per group, and w is a weight per
element of the same shape or None for plain least squares.
"""

import numpy as np

from tqgguf.kernels.dtypes import F16, F32, U8
from tqgguf.kernels.search import reciprocal

_SPREAD = np.linspace(-1.0, 1.0, 9, dtype=np.float32)


def as_groups(x: F32, w: F32 | None, size: int) -> tuple[F32, F32 | None]:
    """Make each run of `size` elements a column of its own.

    x, w: (groups * size, n) -> (size, groups * n), column g * n + j holding group g of block j.
    """
    if w is not None:
        w = _as_groups(np.broadcast_to(w, x.shape), size)
    return _as_groups(x, size), w


def dot(a: F32, b: F32, w: F32 | None = None) -> F32:
    """Sum of w * a * b over axis 0: (size, n) -> (n,) float32."""
    sums: F32 = np.einsum("in,in->n", a, b) if w is None else np.einsum("in,in,in->n", a, b, w)
    return sums


def signed_peak(x: F32) -> F32:
    """The element of largest magnitude of every column, with its sign: (size, n) -> (n,)."""
    high, low = x.max(axis=0), x.min(axis=0)
    peak: F32 = np.where(high > -low, high, low)
    return peak


def symmetric(x: F32, w: F32 | None, *, low: int, high: int) -> F32:
    """The step of w = step * q, q in low..high, with the least weighted error: (size, n) -> (n,).

    The longer side of the grid (low) is turned towards the element of largest magnitude.
    """
    unit = reciprocal(signed_peak(x))
    best, gain = np.zeros_like(unit), np.zeros_like(unit)
    for shift in _SPREAD:
        q = np.rint(x * (unit * (np.float32(low) + shift)))
        np.clip(q, low, high, out=q)
        qx, qq = dot(q, x, w), dot(q, q, w)
        step = qx * reciprocal(qq)
        better = step * qx > gain
        best, gain = np.where(better, step, best), np.where(better, step * qx, gain)
    return best


def affine(x: F32, w: F32 | None, *, levels: int) -> tuple[F32, F32]:
    """Step and depth of w = step * q - depth, q in 0..levels, depth >= 0: (size, n) -> two (n,)."""
    weight = np.ones_like(x) if w is None else w
    low = np.minimum(x.min(axis=0), 0)
    reach = x.max(axis=0) - low
    total, x_sum = weight.sum(axis=0), (weight * x).sum(axis=0)
    best, depth = reach / np.float32(levels), -low
    error = np.full_like(low, np.inf)
    for shift in _SPREAD:
        inverse = reciprocal(reach) * (np.float32(levels) + shift)
        q = np.clip(np.rint((x - low) * inverse), 0, levels)
        q_sum, qq, qx = (weight * q).sum(axis=0), dot(q, q, weight), dot(q, x, weight)
        s, o = _solve(qq, q_sum, total, qx, x_sum)
        e = s * (s * qq - 2 * qx - 2 * o * q_sum) + o * (o * total + 2 * x_sum)
        better = e < error
        best, depth = np.where(better, s, best), np.where(better, o, depth)
        error = np.where(better, e, error)
    return best, depth


def share_scale(values: F32, *, levels: int) -> tuple[F16, U8]:
    """Write the non-negative values of a block as one float16 scale times codes 0..levels.

    values: (groups, n) float32 -> scale: (n,) float16, codes: (groups, n) uint8.
    """
    scale = to_half(values.max(axis=0) / np.float32(levels))
    codes = np.rint(values * reciprocal(scale.astype(np.float32)))
    return scale, np.clip(codes, 0, levels).astype(np.uint8)


def share_signed_scale(values: F32, *, low: int, high: int) -> tuple[F16, F32]:
    """Write the values of a block as one float16 scale times integers low..high.

    values: (groups, n) float32 -> scale: (n,) float16, integers: (groups, n) float32.
    """
    scale = to_half(signed_peak(values) / np.float32(low))
    codes = np.rint(values * reciprocal(scale.astype(np.float32)))
    return scale, np.clip(codes, low, high)


def to_half(scale: F32) -> F16:
    """float32 -> float16; what does not fit becomes Inf, which `Format` reports."""
    with np.errstate(over="ignore"):
        return scale.astype(np.float16)


def _solve(qq: F32, q: F32, total: F32, qx: F32, x: F32) -> tuple[F32, F32]:
    """Least squares of step * q - depth with depth >= 0, from the sums over a group."""
    determinant = total * qq - q * q
    inverse = reciprocal(np.maximum(determinant, 0))
    step, depth = (total * qx - q * x) * inverse, (q * qx - qq * x) * inverse
    through_zero = (depth < 0) | (inverse == 0)
    step = np.where(through_zero, qx * reciprocal(qq), step)
    return np.maximum(step, 0), np.where(through_zero, 0, depth).astype(np.float32)


def _as_groups(x: F32, size: int) -> F32:
    return x.reshape(-1, size, x.shape[1]).swapaxes(0, 1).reshape(size, -1)
