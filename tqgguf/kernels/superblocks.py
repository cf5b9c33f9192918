"""Share one or two float16 scales among the groups of a super-block, whose own are integers.

Element-major, as in `scales`. What the reader will see, after rounding, decides everything: the
integers are chosen under the rounded float16 scales, the codes under both, and then the scales
are fitted once more to those codes.
"""

import numpy as np

from tqgguf.kernels.dtypes import F16, F32
from tqgguf.kernels.scales import (
    Ranges,
    Sums,
    affine,
    as_groups,
    pick,
    requantize,
    signed_peak,
    solve,
    symmetric,
    to_half,
)
from tqgguf.kernels.search import reciprocal, snap

_NEIGHBOURS = np.array([0, -1, 1], np.float32)[:, None, None]


def affine_block(
    x: F32,
    w: F32 | None,
    *,
    size: int,
    levels: int,
    top: int,
    ranges: Ranges,
    rounds: int = 1,
) -> tuple[F16, F16, F32, F32]:
    """Fit w = d * sc * q - dmin * m, q in 0..levels, sc and m in 0..top, groups of `size`.

    rounds: how often the scales are fitted again to the codes under the last ones.
    x: (block, n) -> d and dmin: (n,) float16, sc and m: (block // size, n) float32 integers.
    """
    groups = len(x) // size
    x, w = as_groups(x, size), None if w is None else as_groups(w, size)
    flat = affine(x, w, levels=levels, ranges=ranges)
    sums = flat.reshape(groups)
    d, dmin = (to_half(v.max(axis=0) / np.float32(top)) for v in solve(sums))
    # six bits are fine enough to leave the first choice to rounding, four are not
    sc, m = _integers(sums, d, dmin, top, _NEIGHBOURS if top < 32 else _NEIGHBOURS[:1])
    for _ in range(rounds):
        step, depth = ((a.astype(np.float32) * b).reshape(-1) for a, b in ((d, sc), (dmin, m)))
        sums = requantize(x, w, flat, step, depth, levels=levels).reshape(groups)
        d, dmin = _refit(sums, sc, m, d, dmin)
        sc, m = _integers(sums, d, dmin, top, _NEIGHBOURS)
    return d, dmin, sc, m


def symmetric_block(
    x: F32,
    w: F32 | None,
    *,
    size: int,
    levels: F32,
    low: int,
    high: int,
    factors: tuple[float, ...],
) -> tuple[F16, F32]:
    """Fit w = d * sc * level, sc in low..high, groups of `size`.

    x: (block, n) -> d: (n,) float16, sc: (block // size, n) float32 integers.
    """
    groups = len(x) // size
    x, w = as_groups(x, size), None if w is None else as_groups(w, size)
    qx, qq = (v.reshape(groups, -1) for v in symmetric(x, w, levels=levels, factors=factors))
    step = qx * reciprocal(qq)
    d = to_half(signed_peak(step) / np.float32(low))
    sc = _round(step * reciprocal(d.astype(np.float32)), low, high)
    qx, qq = _requantize(x, w, d.astype(np.float32) * sc, levels)
    d = _quotient(sc * qx, sc * sc * qq, d)
    return d, _round(qx * reciprocal(qq * d.astype(np.float32)), low, high)


def _integers(sums: Sums, d: F16, dmin: F16, top: int, neighbours: F32) -> tuple[F32, F32]:
    """The best sc and m of every group for its codes: sc among the neighbours, m exactly.

    neighbours: (k, 1, 1) distances from the optimum, sums: (groups, n) -> two (groups, n) float32.
    The error is quadratic in both.
    """
    scale, bottom = d.astype(np.float32), dmin.astype(np.float32)
    middle = np.rint(solve(sums)[0] * reciprocal(scale))
    tried = np.empty((len(neighbours), 2, *middle.shape), np.float32)
    sc, m = tried[:, 0], tried[:, 1]
    np.clip(middle + neighbours, 0, top, out=sc)
    step = sc * scale
    np.rint((step * sums.q - sums.x) * (reciprocal(sums.total) * reciprocal(bottom)), out=m)
    np.clip(m, 0, top, out=m)
    best_sc, best_m = pick(tried, -_error(sums, step, m * bottom))
    return best_sc, best_m


def _error(sums: Sums, step: F32, depth: F32) -> F32:
    """The squared error up to a constant, of the sums' shape."""
    linear = step * sums.qq - 2 * (depth * sums.q + sums.qx)
    return step * linear + depth * (depth * sums.total + 2 * sums.x)


def _refit(sums: Sums, sc: F32, m: F32, d: F16, dmin: F16) -> tuple[F16, F16]:
    """The best d and dmin of every block for its codes and integers: (groups, n) -> two (n,)."""
    a, b, c = (v.sum(axis=0) for v in (sc * sc * sums.qq, sc * m * sums.q, m * m * sums.total))
    right, left = (sc * sums.qx).sum(axis=0), (m * sums.x).sum(axis=0)
    determinant = a * c - b * b
    solvable = determinant > np.float32(1e-4) * a * c
    inverse = reciprocal(np.where(solvable, determinant, np.float32(0)))
    new_d, new_dmin = (c * right - b * left) * inverse, (b * right - a * left) * inverse
    return to_half(np.where(solvable, new_d, d)), to_half(np.where(solvable, new_dmin, dmin))


def _requantize(x: F32, w: F32 | None, step: F32, levels: F32) -> tuple[F32, F32]:
    """Sums of q*x and q*q of the codes under given steps (groups, n) -> two (groups, n)."""
    q = x * reciprocal(step).reshape(-1)
    np.clip(q, levels[0], levels[-1], out=q)
    snap(q, levels, out=q)
    heavy = q if w is None else q * w
    qx, qq = np.einsum("in,in->n", heavy, x), np.einsum("in,in->n", heavy, q)
    return qx.reshape(step.shape), qq.reshape(step.shape)


def _quotient(numerator: F32, denominator: F32, otherwise: F16) -> F16:
    """Sums over the groups divided, as float16: two (groups, n) -> (n,)."""
    below = denominator.sum(axis=0)
    return to_half(np.where(below > 0, numerator.sum(axis=0) * reciprocal(below), otherwise))


def _round(values: F32, low: int, high: int) -> F32:
    return np.clip(np.rint(values), low, high)
