"""Round a matrix so that its output changes least, not its weights (GPTQ, arXiv 2210.17323).

For y = W x with second moments H = E[x x^T] the error to be small is tr(E H E^T), E = W - Q. Rows
are independent, columns are not: an error made in one column is made up for in those that follow,
and afterwards every column and every scale is visited again with all the others as they are.

Everything is element-major: w is (n_in, n) float32, one column per row of the matrix, so a block
of weights is a slab of rows, as formats want it. What a few of them changed is carried to the rest
by one product (the lazy batches of the same paper).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from tqgguf.kernels.arrays import (
    add_to_diagonal,
    empty,
    is_numpy,
    moved,
    namespace,
    to_numpy,
)
from tqgguf.kernels.dtypes import F32, F64, I64, U8, Blocks
from tqgguf.kernels.greedy import Factor, Rounding, Turns, falling, prepared
from tqgguf.kernels.protocols import Runner, ScalarFormat
from tqgguf.kernels.refitting import Scales
from tqgguf.kernels.revisiting import Revisit, panel, panels, visits
from tqgguf.kernels.scales import as_groups
from tqgguf.kernels.search import indices, snapper
from tqgguf.kernels.turns import Snap

DAMPING = 0.1  # of the mean of H's diagonal, added to it
_WRITTEN = 1024  # blocks whose codes are packed at a time, about
_SOLVED = 64  # rows of a triangular system at a time
_SOLVED_AWAY = 1024  # the same where calls cost more than arithmetic

Each = Callable[[Callable[[Any], object], Sequence[Any]], Iterable[object]]


def at_once(work: Callable[..., None], *arrays: Any) -> None:
    """Do work(*arrays), which changes arrays in place."""
    work(*arrays)


@dataclass(frozen=True)
class Moments:
    """H = h + added I, (n_in, n_in), and the factor of H in the order of rounding."""

    h: F32
    factor: Factor
    added: float = 0.0

    def to_numpy(self) -> "Moments":
        """The same in the memory of this process."""
        factor = self.factor
        arrays = (to_numpy(a) for a in factor.arrays)
        return Moments(to_numpy(self.h), Factor(factor.order, factor.spans, *arrays), self.added)

    def solve(self, b: F32) -> F32:
        """The x of H x = b, (n_in, m)."""
        xp, factor = namespace(b), self.factor
        there, back = (moved(i, b) for i in (factor.order, np.argsort(factor.order)))
        x = solve(factor.v, factor.inverses, xp.take(b, there, axis=0))
        found: F32 = xp.take(x, back, axis=0)
        return found

    def block(self, here: slice) -> F32:
        """A block on H's diagonal, (size, size)."""
        own: F32 = namespace(self.h).asarray(self.h[here, here], copy=True)
        add_to_diagonal(own, self.added)
        return own

    def pull(self, here: slice, error: F32) -> F32:
        """Rows of H e, minus half the slope of e^T H e: error (n_in, n) -> (size, n)."""
        pull: F32 = self.h[here, :] @ error
        if self.added:
            pull += np.float32(self.added).item() * error[here, :]
        return pull


def factored(h: F32 | F64, *, damping: float = DAMPING) -> Moments:
    """Damp and factor second moments; any H that is finite will do, rank-deficient or zero.

    h: (n_in, n_in), symmetric and positive semidefinite up to rounding.
    """
    xp = namespace(h)
    full: F32 = xp.astype(h, xp.float32)
    added, factor = factor_in_order(full, damping=damping)
    return Moments(_with_added(full, added), factor)


def factor_in_order(h: F32, *, damping: float) -> tuple[float, Factor]:
    """What has to be added to H's diagonal, and the factor of H in the order of rounding."""
    xp = namespace(h)
    diagonal = to_numpy(xp.linalg.diagonal(h))
    order = falling(diagonal)
    added, v = factor(h, damping=damping, order=order)
    asked, pushes, turned = prepared(v, diagonal[order])
    spans, visited = visits(h, added)
    return added, Factor(order, spans, v, inverses(v), asked, pushes, turned, visited)


def factor(h: F32, *, damping: float, order: I64 | None = None) -> tuple[float, F32]:
    """What has to be added to H's diagonal, and the upper triangular V: H + added I = V V^T.

    added is damping times the diagonal's mean, more where rounding made H indefinite by more than
    that. h: (n_in, n_in) -> v, like h, in float32: three times H in memory. order: of H's rows and
    columns in that equation.
    """
    xp = namespace(h)
    mean = float(to_numpy(xp.linalg.diagonal(h)).mean(dtype=np.float64)) or 1.0
    while True:
        added = damping * mean
        damped = _backwards(h, order)
        add_to_diagonal(damped, added)
        try:
            return added, xp.flip(_cholesky(damped))
        except np.linalg.LinAlgError:
            damping *= 4
            del damped  # or there would be three


def _backwards(h: F32, order: I64 | None) -> F32:
    """H in an order, or its own, from the last column to the first."""
    xp = namespace(h)
    if order is None:
        turned: F32 = xp.asarray(xp.flip(h), copy=True)
        return turned
    index = moved(order[::-1].copy(), h)
    found: F32 = xp.take(xp.take(h, index, axis=0), index, axis=1)
    return found


def _panels(a: F32) -> list[slice]:
    """The rows of a that are worked on at a time."""
    return list(_slices(0, a.shape[0], _solved(a)))


def _solved(a: F32) -> int:
    return _SOLVED if is_numpy(a) else _SOLVED_AWAY


def _cholesky(a: F32) -> F32:
    """The lower triangular L of a = L L^T, which a is written over with, by products of panels.

    Raises LinAlgError where a is not positive definite.
    """
    cholesky = namespace(a).linalg.cholesky
    for here in _panels(a):
        a[here.start :, here] -= a[here.start :, : here.start] @ a[here, : here.start].T
        a[here, here] = cholesky(a[here, here])
        a[here.stop :, here] = a[here.stop :, here] @ _inverse(a[here, here]).T
        a[here, here.stop :] = 0
    return a


def inverses(v: F32) -> F32:
    """The inverses of the blocks on V's diagonal, one below the other: (n, n) -> (n, size)."""
    found: F32 = empty((v.shape[0], min(v.shape[0], _solved(v))), v)
    for here in _panels(v):
        found[here, : here.stop - here.start] = _inverse(v[here, here])
    return found


def solve(v: F32, inverses: F32, b: F32) -> F32:
    """The x of V V^T x = b, a block of rows at a time: v (n, n) upper triangular, b (n, m)."""
    x: F32 = namespace(b).asarray(b, copy=True)
    blocks = list(_slices(0, *inverses.shape))
    for here in reversed(blocks):
        rest = x[here, :] - v[here, here.stop :] @ x[here.stop :, :]
        x[here, :] = inverses[here, : here.stop - here.start] @ rest
    for here in blocks:
        rest = x[here, :] - v[: here.start, here].T @ x[: here.start, :]
        x[here, :] = inverses[here, : here.stop - here.start].T @ rest
    return x


def _with_added(h: F32, added: float) -> F32:
    damped: F32 = namespace(h).asarray(h, copy=True)
    add_to_diagonal(damped, added)
    return damped


def _inverse(a: F32) -> F32:
    xp = namespace(a)
    inverse: F32 = xp.astype(xp.linalg.inv(xp.astype(a, xp.float64)), xp.float32)
    return inverse


def output_error(w: F32, q: F32, h: F32) -> F64:
    """The squared error of every row's output: (n_in, n), (n_in, n), (n_in, n_in) -> (n,)."""
    e = w - q
    out: F64 = np.einsum("in,in->n", e, h @ e, dtype=np.float64)
    return out


def round_matrix(
    w: F32,
    moments: Moments,
    fmt: ScalarFormat,
    *,
    sweeps: int = 4,
    run: Runner = at_once,
    each: Each = map,
) -> tuple[Blocks, F32]:
    """Quantize with error feedback.

    w: (n_in, n) float32 -> blocks: (n_in / block_size, n) and the weights they decode to, like w.
    sweeps: how often every scale and every code is revisited after the greedy pass. run: how what
    is the same for every block is done, a graph of calls say. each: map, or one with threads, for
    packing codes, which NumPy does whatever the library of w.
    """
    state, blocks = _begin(w, moments, fmt, run)
    _sweep(state, moments, sweeps)
    codes = to_numpy(indices(state.units, fmt.levels))
    some = list(_slices(0, len(blocks), max(1, _WRITTEN // w.shape[1])))
    list(each(partial(_finish, state, blocks, codes), some))
    return blocks, w - state.error


def _sweep(state: "_State", moments: Moments, sweeps: int) -> None:
    """Revisit all scales and codes so often."""
    fmt, size = state.fmt, state.fmt.block_size
    spans, visited = moments.factor.spans, moments.factor.visited
    all_panels = [
        panel(moments.block(here), here, count, visited, size, fmt.group_size)
        for here, count in zip(panels(state.units.shape[0]), spans, strict=True)
        if sweeps
    ]
    kind = state.scales.kind
    for sweep, each in product(range(sweeps), all_panels):
        whole, here = kind.limits is None or sweep % 2 == 0, each.here
        work = Revisit(kind, whole, fmt.levels.tobytes(), state.snap)
        changed = state.units[here, :], state.error[here, :]
        scales = state.scales.of(here.start // size, here.stop // size)
        pull = moments.pull(here, state.error)
        state.run(work, *changed, *scales.arrays, pull, *each.arrays)


def _finish(state: "_State", blocks: Blocks, codes: U8, here: slice) -> None:
    """Write the scales and codes of some blocks down."""
    fmt, size = state.fmt, state.fmt.block_size
    state.scales.of(here.start, here.stop).write(blocks[here], fmt)
    own = codes[here.start * size : here.stop * size]
    fmt.pack(blocks[here].reshape(-1), as_groups(own, size))


@dataclass
class _State:
    """A rounding in the making."""

    units: F32  # (n_in, n), the level of every weight
    error: F32  # (n_in, n), w - q
    scales: Scales
    snap: Snap  # to the nearest level
    fmt: ScalarFormat
    run: Runner


def _begin(w: F32, moments: Moments, fmt: ScalarFormat, run: Runner) -> tuple["_State", Blocks]:
    """Every column rounded once, and blocks whose scales are set."""
    xp, snap = namespace(w), snapper(fmt.levels, w)
    blocks = np.zeros((w.shape[0] // fmt.block_size, w.shape[1]), fmt.layout)
    diagonal = to_numpy(xp.linalg.diagonal(moments.h))
    turns = Turns(moments.factor.order, diagonal, fmt.block_size, fmt.group_size)
    fitted = Scales.blank(fmt, w)
    rounding = Rounding(moments.factor, turns, fmt, snap, run, fitted, blocks)
    units, error = rounding.round(w)
    by_block, by_group = (moved(np.argsort(a), w) for a in (turns.blocks, turns.groups))
    indices = by_block, by_group, by_block, by_group
    arrays = (xp.take(a, i, axis=0) for a, i in zip(fitted.arrays, indices, strict=True))
    return _State(units, error, Scales(fitted.kind, *arrays), snap, fmt, run), blocks


def _slices(begin: int, end: int, size: int) -> Iterator[slice]:
    for at in range(begin, end, size):
        yield slice(at, min(at + size, end))
