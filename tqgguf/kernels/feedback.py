"""Round a matrix so that its output changes least, not its weights (GPTQ, arXiv 2210.17323).

For y = W x with second moments H = E[x x^T] the error to be small is tr(E H E^T), E = W - Q. Rows
are independent, columns are not: an error made in one column is made up for in those that follow,
and afterwards every column and every scale is visited again with all the others as they are.

Everything is element-major: w is (n_in, n) float32, one column per row of the matrix, so a block
of weights is a slab of rows, as formats want it. Weights that share a step are reckoned in steps,
where a code is found by rounding; what a few of them changed is carried to the rest of the block by
one product (the lazy batches of the same paper).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from tqgguf.kernels.arrays import (
    add_to_diagonal,
    empty,
    in_place,
    is_numpy,
    moved,
    namespace,
    small_product,
    to_numpy,
)
from tqgguf.kernels.dtypes import F32, F64, U8, Blocks
from tqgguf.kernels.protocols import ScalarFormat
from tqgguf.kernels.refitting import Scales
from tqgguf.kernels.revisiting import Revisit, Snap, panel, panels
from tqgguf.kernels.search import indices, reciprocal, snapper

DAMPING = 0.1  # of the mean of H's diagonal, added to it
_SOLVED = 64  # rows of a triangular system at a time
_SOLVED_AWAY = 1024  # the same where calls cost more than arithmetic
_STRIP = 16  # columns between two updates of the rest of a block; no group has fewer

Runner = Callable[..., None]
Each = Callable[[Callable[[Any], object], Sequence[Any]], Iterable[object]]


def at_once(work: Callable[..., None], *arrays: Any) -> None:
    """Do work(*arrays), which changes arrays in place."""
    work(*arrays)


@dataclass(frozen=True)
class Moments:
    """H = h + added I and its factor: H = V V^T with V upper triangular, h and v (n_in, n_in).

    inverses: what `inverses` makes of v.
    """

    h: F32
    v: F32
    inverses: F32
    added: float = 0.0

    def block(self, here: slice) -> F32:
        """A block on H's diagonal, (size, size)."""
        own: F32 = namespace(self.h).asarray(self.h[here, here], copy=True)
        add_to_diagonal(own, self.added)
        return own

    def inverses_of(self, here: slice) -> F32:
        """The same of a block on V's diagonal."""
        width = self.inverses.shape[1]
        begin = here.start % width
        own: F32 = self.inverses[here, begin : min(begin + here.stop - here.start, width)]
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
    added, v = factor(full, damping=damping)
    return Moments(_with_added(full, added), v, inverses(v))


def factor(h: F32, *, damping: float) -> tuple[float, F32]:
    """What has to be added to H's diagonal, and the upper triangular V: H + added I = V V^T.

    added is damping times the diagonal's mean, more where rounding made H indefinite by more than
    that. h: (n_in, n_in) -> v, like h, in float32: three times H in memory.
    """
    xp = namespace(h)
    mean = float(to_numpy(xp.linalg.diagonal(h)).mean(dtype=np.float64)) or 1.0
    while True:
        added = damping * mean
        try:
            lower = _cholesky(xp.asarray(xp.flip(_with_added(h, added)), copy=True))
        except np.linalg.LinAlgError:
            damping *= 4
            continue
        return added, xp.flip(lower)


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
    """The inverses of the blocks on V's diagonal, one below the other: (n, n) -> (n, size).

    Those of smaller blocks of a power of two are parts of them, for V is triangular.
    """
    found: F32 = empty((v.shape[0], min(v.shape[0], _solved(v))), v)
    for here in _panels(v):
        found[here, : here.stop - here.start] = _inverse(v[here, here])
    return found


def solve(v: F32, inverses: F32, b: F32) -> F32:
    """The x of V V^T x = b, a block of rows at a time: v (n, n) upper triangular, b (n, m)."""
    x: F32 = namespace(b).asarray(b, copy=True)
    for here in reversed(list(_slices(0, *inverses.shape))):
        rest = x[here, :] - v[here, here.stop :] @ x[here.stop :, :]
        x[here, :] = inverses[here, : here.stop - here.start] @ rest
    return _solve_lower(v, inverses, x)


def _solve_lower(v: F32, inverses: F32, b: F32) -> F32:
    """The x of V^T x = b: v (n, n) upper triangular, b (n, m), which is written over."""
    for here in _slices(0, *inverses.shape):
        rest = b[here, :] - v[: here.start, here].T @ b[: here.start, :]
        b[here, :] = inverses[here, : here.stop - here.start].T @ rest
    return b


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
    state = _State.begin(w, fmt, run)
    places = list(_slices(0, w.shape[0], fmt.block_size))
    blocks = np.zeros((len(places), w.shape[1]), fmt.layout)
    for i, here in enumerate(places):
        _greedy(state, i, here, w[here, :], moments, blocks[i])
    _sweep(state, moments, sweeps)
    codes = to_numpy(indices(state.units, fmt.levels))
    list(each(partial(_finish, state, blocks, codes), list(enumerate(places))))
    return blocks, w - state.error


def _sweep(state: "_State", moments: Moments, sweeps: int) -> None:
    """Revisit all scales and codes so often."""
    fmt, size = state.fmt, state.fmt.block_size
    all_panels = [
        panel(moments.block(here), here, size, fmt.group_size)
        for here in (panels(state.units.shape[0]) if sweeps else ())
    ]
    kind = state.scales.kind
    for sweep, each in product(range(sweeps), all_panels):
        whole, here = kind.limits is None or sweep % 2 == 0, each.here
        work = Revisit(kind, whole, fmt.levels.tobytes(), state.snap)
        changed = state.units[here, :], state.error[here, :]
        scales = state.scales.of(here.start // size, here.stop // size)
        pull = moments.pull(here, state.error)
        state.run(work, *changed, *scales.arrays, pull, *each.arrays)


def _finish(state: "_State", blocks: Blocks, codes: U8, at: tuple[int, slice]) -> None:
    """Write a block's scales and codes down."""
    i, here = at
    state.scales.of(i, i + 1).write(blocks[i], state.fmt)
    state.fmt.pack(blocks[i], codes[here])


@dataclass
class _State:
    """A rounding in the making."""

    units: F32  # (n_in, n), the level of every weight
    error: F32  # (n_in, n), w - q
    scales: Scales
    snap: Snap  # to the nearest level
    fmt: ScalarFormat
    run: Runner

    @staticmethod
    def begin(w: F32, fmt: ScalarFormat, run: Runner) -> "_State":
        """Nothing is rounded yet."""
        units, error = (namespace(w).empty_like(w) for _ in range(2))
        return _State(units, error, Scales.blank(fmt, w), snapper(fmt.levels, w), fmt, run)


def _slices(begin: int, end: int, size: int) -> Iterator[slice]:
    for at in range(begin, end, size):
        yield slice(at, min(at + size, end))


def _greedy(state: _State, i: int, here: slice, w: F32, moments: Moments, blocks: Blocks) -> None:
    """Fit the scales of block i to what earlier errors made of its weights, then round in turn.

    H = V V^T, so the error is the sum over columns c of (V^T e)_c^2. That of c depends on e_c and
    the errors before it alone, and is least where e_c makes up for them: V_cc e_c = - carried_c.
    """
    xp = namespace(w)
    own = xp.asarray(moments.v[here, here], copy=True)
    carried = moments.v[: here.start, here].T @ state.error[: here.start, :]  # (size, n)
    corrected = w + _solve_lower(own, moments.inverses_of(here), xp.asarray(carried, copy=True))
    scales, results = state.scales.of(i, i + 1), (state.units[here, :], state.error[here, :])
    then = _Greedy(state.fmt.group_size, state.fmt.levels.tobytes(), state.snap)
    if state.fmt.choose and not is_numpy(w):
        work = _FitAndRound(state.fmt.choose, then)
        state.run(work, *results, *scales.arrays, carried, w, own, corrected)
        return
    diagonal = to_numpy(xp.linalg.diagonal(own))[:, None]
    blocks[:] = state.fmt.fit(to_numpy(corrected), np.broadcast_to(diagonal**2, corrected.shape))
    step, offset = (moved(a, w) for a in state.fmt.grid(blocks))
    state.run(then, *results, carried, w, own, step, offset)
    scales.read(blocks, state.fmt)


@dataclass(frozen=True)
class _Greedy:
    """Round the weights of a block in turn, each making up for those before it."""

    group_size: int
    levels: bytes
    snap: Snap = field(compare=False)

    def __call__(
        self, units: F32, error: F32, carried: F32, w: F32, own: F32, step: F32, offset: F32
    ) -> None:
        """All (size, n), but own (size, size), step and offset (groups, n)."""
        inverse, diagonal = reciprocal(step), namespace(own).linalg.diagonal(own)
        for at in _slices(0, w.shape[0], _STRIP):
            g = at.start // self.group_size
            meant = (w[at, :] - offset[g, :]) * inverse[g, :]
            pushed = carried[at, :] * (inverse[g, :] / diagonal[at, None])
            units[at, :] = _round_in_turn(meant, pushed, own[at, at] / diagonal[at], self.snap)
            error[at, :] = w[at, :] - (step[g, :] * units[at, :] + offset[g, :])
            carried[at.stop :, :] += own[at, at.stop :].T @ error[at, :]


@dataclass(frozen=True)
class _FitAndRound:
    """Fit the scales of a block, then round its weights in turn."""

    choose: Any
    then: _Greedy

    def __call__(
        self, units: F32, error: F32, d: F32, sub: F32, dmin: F32, minima: F32, *arrays: F32
    ) -> None:
        """The scales' arrays, and of `_Greedy` carried, w and own; at last the weights to fit."""
        carried, w, own, corrected = arrays
        xp = namespace(w)
        squares = xp.linalg.diagonal(own)[:, None] ** 2
        sub[...] = 1
        chosen = self.choose(corrected, xp.broadcast_to(squares, corrected.shape))
        for scales, found in zip((d, sub, dmin, minima), chosen, strict=False):
            scales[...] = found
        self.then(units, error, carried, w, own, d * sub, -dmin * minima)


def _round_in_turn(meant: F32, pushed: F32, v: F32, snap: Snap) -> F32:
    """Round a few columns, each making up for those before it. All in units of their steps.

    meant, pushed: (size, n), the weights and what earlier errors ask of them; v: (size, size), V
    with its columns divided by its diagonal -> the levels, (size, n).
    """
    xp = namespace(meant)
    subtract, times = in_place(xp.subtract), small_product(v)
    units: F32 = meant + pushed
    error: F32 = xp.empty_like(meant)
    for c in range(meant.shape[0]):
        own, level = meant[c, :], units[c, :]
        if c:
            level += times(v[:c, c], error[:c, :])
        snap(level)
        subtract(own, level, out=error[c, :])
    return units
