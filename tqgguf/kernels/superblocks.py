"""Share one or two float16 scales among the groups of a super-block, whose own are integers.

Element-major, as in `scales`. What the reader will see, after rounding, decides everything: the
integers are chosen under the rounded float16 scales, the codes under both, and then the scales
are fitted once more to those codes.
"""

from tqgguf.kernels.arrays import clip, constant, dot, empty, namespace, rint
from tqgguf.kernels.dtypes import F32
from tqgguf.kernels.scales import (
    Ranges,
    Sums,
    affine,
    as_groups,
    halved,
    pick,
    requantize,
    signed_peak,
    solve,
    symmetric,
)
from tqgguf.kernels.search import reciprocal, snap

_NEIGHBOURS = (0, -1, 1)


def affine_block(
    x: F32,
    w: F32 | None,
    *,
    size: int,
    levels: int,
    top: int,
    ranges: Ranges,
    rounds: int = 1,
) -> tuple[F32, F32, F32, F32]:
    """Fit w = d * sc * q - dmin * m, q in 0..levels, sc and m in 0..top, groups of `size`.

    rounds: how often the scales are fitted again to the codes under the last ones.
    x: (block, n) -> d and dmin: (n,), which float16 holds, sc and m: (block // size, n) integers;
    all float32.
    """
    xp, groups = namespace(x), x.shape[0] // size
    x, w = as_groups(x, size), None if w is None else as_groups(w, size)
    flat = affine(x, w, levels=levels, ranges=ranges)
    sums = flat.reshape(groups)
    d, dmin = (halved(xp.max(v, axis=0) / top) for v in solve(sums))
    # six bits are fine enough to leave the first choice to rounding, four are not
    sc, m = _integers(sums, d, dmin, top, _NEIGHBOURS if top < 32 else _NEIGHBOURS[:1])
    for _ in range(rounds):
        step, depth = (xp.reshape(a * b, (-1,)) for a, b in ((d, sc), (dmin, m)))
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
) -> tuple[F32, F32]:
    """Fit w = d * sc * level, sc in low..high, groups of `size`.

    x: (block, n) -> d: (n,), which float16 holds, sc: (block // size, n) integers; both float32.
    """
    xp, groups = namespace(x), x.shape[0] // size
    x, w = as_groups(x, size), None if w is None else as_groups(w, size)
    found = symmetric(x, w, levels=levels, factors=factors)
    qx, qq = (xp.reshape(v, (groups, -1)) for v in found)
    step = qx * reciprocal(qq)
    d = halved(signed_peak(step) / float(low))
    sc = _round(step * reciprocal(d), low, high)
    qx, qq = _requantize(x, w, d * sc, levels)
    d = _quotient(sc * qx, sc * sc * qq, d)
    return d, _round(qx * reciprocal(qq * d), low, high)


def _integers(
    sums: Sums, d: F32, dmin: F32, top: int, neighbours: tuple[int, ...]
) -> tuple[F32, F32]:
    """The best sc and m of every group for its codes: sc among the neighbours, m exactly.

    neighbours: distances from the optimum, sums: (groups, n) -> two (groups, n) float32.
    The error is quadratic in both.
    """
    middle = rint(solve(sums)[0] * reciprocal(d))
    tried = empty((len(neighbours), 2, *middle.shape), middle)
    sc, m = tried[:, 0, ...], tried[:, 1, ...]
    for i, distance in enumerate(neighbours):
        sc[i, ...] = clip(middle + distance, 0, top)
    step = sc * d
    wish = (step * sums.q - sums.x) * (reciprocal(sums.total) * reciprocal(dmin))
    m[...] = clip(rint(wish), 0, top)
    best = pick(tried, -_error(sums, step, m * dmin))
    return best[0, ...], best[1, ...]


def _error(sums: Sums, step: F32, depth: F32) -> F32:
    """The squared error up to a constant, of the sums' shape."""
    linear = step * sums.qq - 2 * (depth * sums.q + sums.qx)
    return step * linear + depth * (depth * sums.total + 2 * sums.x)


def _refit(sums: Sums, sc: F32, m: F32, d: F32, dmin: F32) -> tuple[F32, F32]:
    """The best d and dmin of every block for its codes and integers: (groups, n) -> two (n,)."""
    xp = namespace(sc)
    products = (sc * sc * sums.qq, sc * m * sums.q, m * m * sums.total, sc * sums.qx, m * sums.x)
    a, b, c, right, left = (xp.sum(v, axis=0) for v in products)
    determinant = a * c - b * b
    solvable = determinant > 1e-4 * a * c
    inverse = reciprocal(xp.where(solvable, determinant, constant(0, determinant)))
    new_d, new_dmin = (c * right - b * left) * inverse, (b * right - a * left) * inverse
    return halved(xp.where(solvable, new_d, d)), halved(xp.where(solvable, new_dmin, dmin))


def _requantize(x: F32, w: F32 | None, step: F32, levels: F32) -> tuple[F32, F32]:
    """Sums of q*x and q*q of the codes under given steps (groups, n) -> two (groups, n)."""
    xp = namespace(x)
    q = x * xp.reshape(reciprocal(step), (-1,))
    q = clip(q, float(levels[0]), float(levels[-1]))
    snap(q, levels, out=q)
    heavy = q if w is None else q * w
    qx, qq = dot(heavy, x), dot(heavy, q)
    return xp.reshape(qx, step.shape), xp.reshape(qq, step.shape)


def _quotient(numerator: F32, denominator: F32, otherwise: F32) -> F32:
    """Sums over the groups divided, as float16 holds them: two (groups, n) -> (n,)."""
    xp = namespace(numerator)
    below = xp.sum(denominator, axis=0)
    return halved(xp.where(below > 0, xp.sum(numerator, axis=0) * reciprocal(below), otherwise))


def _round(values: F32, low: int, high: int) -> F32:
    whole: F32 = clip(rint(values), low, high)
    return whole
