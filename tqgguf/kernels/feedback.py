"""Round a matrix so that its output changes least, not its weights (GPTQ, arXiv 2210.17323).

For y = W x with second moments H = E[x x^T] the error to be small is tr(E H E^T), E = W - Q. Rows
are independent, columns are not: an error made in one column is made up for in those that follow,
and afterwards every column and every scale is visited again with all the others as they are.

Everything is element-major: w is (n_in, n) float32, one column per row of the matrix, so a block
of weights is a slab of rows, as formats want it. Weights that share a step are reckoned in steps,
where a code is found by rounding; what a few of them changed is carried to the rest of the block by
one product (the lazy batches of the same paper).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from tqgguf.kernels.dtypes import F32, F64, Blocks
from tqgguf.kernels.protocols import ScalarFormat
from tqgguf.kernels.search import nearest, reciprocal, snapper

DAMPING = 0.01  # of the mean of H's diagonal, added to it
_SOLVED = 64  # rows of a triangular system at a time
_STRIP = 8  # columns between two updates of the rest of a group or block

Snap = Callable[[F32], None]


@dataclass(frozen=True)
class Moments:
    """H = h + added I and its factor: H = V V^T with V upper triangular, h and v (n_in, n_in)."""

    h: F32
    v: F32
    added: float = 0.0

    def block(self, here: slice) -> F32:
        """A block on H's diagonal, (size, size)."""
        own: F32 = np.array(self.h[here, here])
        own[np.diag_indices(len(own))] += np.float32(self.added)
        return own

    def pull(self, here: slice, error: F32) -> F32:
        """Rows of H e, minus half the slope of e^T H e: error (n_in, n) -> (size, n)."""
        pull: F32 = self.h[here] @ error
        if self.added:
            pull += np.float32(self.added) * error[here]
        return pull


def prepare(h: F32 | F64, *, damping: float = DAMPING) -> Moments:
    """Damp and factor second moments; any H that is finite will do, rank-deficient or zero.

    h: (n_in, n_in), symmetric and positive semidefinite up to rounding.
    """
    full = np.asarray(h, np.float32)
    added, v = factor(full, damping=damping)
    return Moments(_with_added(full, added), v)


def factor(h: F32, *, damping: float) -> tuple[float, F32]:
    """What has to be added to H's diagonal, and the upper triangular V: H + added I = V V^T.

    added is damping times the diagonal's mean, more where rounding made H indefinite by more than
    that. h: (n_in, n_in) -> v, like h, in float32: three times H in memory.
    """
    mean = float(np.diagonal(h).mean(dtype=np.float64)) or 1.0
    while True:
        added = damping * mean
        try:
            lower = _cholesky(np.ascontiguousarray(_with_added(h, added)[::-1, ::-1]))
        except np.linalg.LinAlgError:
            damping *= 4
            continue
        return added, lower[::-1, ::-1]


def _cholesky(a: F32) -> F32:
    """The lower triangular L of a = L L^T, which a is written over with, by products of panels.

    Raises LinAlgError where a is not positive definite.
    """
    for here in _slices(0, len(a), _SOLVED):
        a[here.start :, here] -= a[here.start :, : here.start] @ a[here, : here.start].T
        a[here, here] = np.linalg.cholesky(a[here, here])
        a[here.stop :, here] = a[here.stop :, here] @ _inverse(a[here, here]).T
        a[here, here.stop :] = 0
    return a


def solve(v: F32, b: F32) -> F32:
    """The x of V V^T x = b, a block of rows at a time: v (n, n) upper triangular, b (n, m)."""
    x = np.array(b)
    for here in reversed(list(_slices(0, len(v), _SOLVED))):
        rest = x[here] - v[here, here.stop :] @ x[here.stop :]
        x[here] = _inverse(v[here, here]) @ rest
    return _solve_lower(v, x)


def _solve_lower(v: F32, b: F32) -> F32:
    """The x of V^T x = b: v (n, n) upper triangular, b (n, m), which is written over."""
    for here in _slices(0, len(v), _SOLVED):
        rest = b[here] - v[: here.start, here].T @ b[: here.start]
        b[here] = _inverse(v[here, here]).T @ rest
    return b


def _with_added(h: F32, added: float) -> F32:
    damped: F32 = np.array(h)
    damped[np.diag_indices(len(h))] += np.float32(added)
    return damped


def _inverse(a: F32) -> F32:
    inverse: F32 = np.linalg.inv(a.astype(np.float64)).astype(np.float32)
    return inverse


def output_error(w: F32, q: F32, h: F32) -> F64:
    """The squared error of every row's output: (n_in, n), (n_in, n), (n_in, n_in) -> (n,)."""
    e = w - q
    out: F64 = np.einsum("in,in->n", e, h @ e, dtype=np.float64)
    return out


def round_matrix(
    w: F32, moments: Moments, fmt: ScalarFormat, *, sweeps: int = 4
) -> tuple[Blocks, F32]:
    """Quantize with error feedback.

    w: (n_in, n) float32 -> blocks: (n_in / block_size, n) and the weights they decode to, like w.
    sweeps: how often every scale and every code is revisited after the greedy pass.
    """
    places = list(_slices(0, len(w), fmt.block_size))
    state = _State(np.empty_like(w), np.empty_like(w), snapper(fmt.levels))
    blocks = [_greedy(state, here, w[here], moments.v, fmt) for here in places]
    for _ in range(sweeps):
        for block, here in zip(blocks, places, strict=True):
            _revisit(state, block, here, moments, fmt)
    one, none = np.ones(1, np.float32), np.zeros(1, np.float32)
    for block, here in zip(blocks, places, strict=True):
        fmt.pack(block, nearest(state.units[here], one, none, fmt.levels))
    return np.stack(blocks), w - state.error


@dataclass
class _State:
    """A rounding in the making."""

    units: F32  # (n_in, n), the level of every weight
    error: F32  # (n_in, n), w - q
    snap: Snap  # to the nearest level


def _slices(begin: int, end: int, size: int) -> Iterator[slice]:
    for at in range(begin, end, size):
        yield slice(at, min(at + size, end))


def _greedy(state: _State, here: slice, w: F32, v: F32, fmt: ScalarFormat) -> Blocks:
    """Fit the scales of a block to what earlier errors made of its weights, then round in turn.

    H = V V^T, so the error is the sum over columns c of (V^T e)_c^2. That of c depends on e_c and
    the errors before it alone, and is least where e_c makes up for them: V_cc e_c = - carried_c.
    """
    own = np.ascontiguousarray(v[here, here])
    carried = v[: here.start, here].T @ state.error[: here.start]  # (size, n)
    diagonal = np.diagonal(own)[:, None]
    corrected = w + _solve_lower(own, np.array(carried))
    blocks = fmt.fit(corrected, np.broadcast_to(diagonal**2, corrected.shape))
    step, offset = fmt.grid(blocks)
    inverse, units, error = reciprocal(step), state.units[here], state.error[here]
    for at in _slices(0, len(w), _STRIP):
        g = at.start // fmt.group_size
        meant = (w[at] - offset[g]) * inverse[g]
        pushed = carried[at] * (inverse[g] / diagonal[at])
        units[at] = _round_in_turn(meant, pushed, own[at, at] / diagonal[at, 0], state.snap)
        error[at] = w[at] - (step[g] * units[at] + offset[g])
        carried[at.stop :] += own[at, at.stop :].T @ error[at]
    return blocks


def _round_in_turn(meant: F32, pushed: F32, v: F32, snap: Snap) -> F32:
    """Round a few columns, each making up for those before it. All in units of their steps.

    meant, pushed: (size, n), the weights and what earlier errors ask of them; v: (size, size), V
    with its columns divided by its diagonal -> the levels, (size, n).
    """
    units, error = np.empty_like(meant), np.empty_like(meant)
    for c, level in enumerate(units):
        np.add(meant[c], pushed[c], out=level)
        if c:
            level += v[:c, c] @ error[:c]
        snap(level)
        np.subtract(meant[c], level, out=error[c])
    return units


def _revisit(
    state: _State, blocks: Blocks, here: slice, moments: Moments, fmt: ScalarFormat
) -> None:
    """Refit the scales and round the weights of a block anew, given everything else."""
    own, pull = moments.block(here), moments.pull(here, state.error)
    units, error = state.units[here], state.error[here]
    scales = _Scales.read(blocks, fmt)
    for g, part in enumerate(_slices(0, len(own), fmt.group_size)):
        local = own[part, part]
        change = _refit_group(scales, g, units[part], pull[part], local)
        wish = pull[part] - local @ change
        step = scales.step(g)
        change += step * _reround(units[part], wish * reciprocal(step), local, state.snap)
        error[part] -= change
        pull -= own[:, part] @ change
    _refit_block(scales, units, error, pull, own, fmt.group_size)
    scales.write(blocks, fmt)


def _reround(units: F32, pull: F32, h: F32, snap: Snap) -> F32:
    """Coordinate descent over a group's levels, (size, n); returns by how much they changed.

    Given all others, the error is least where weight c moves by pull_c / H_cc. pull: in units of
    the step; h: (size, size).
    """
    diagonal = np.diagonal(h)[:, None]
    wish, h = pull / diagonal, h / diagonal
    change = np.empty_like(units)
    for at in _slices(0, len(units), _STRIP):
        for c in range(at.start, at.stop):
            moved = wish[c]
            if c > at.start:
                moved -= h[c, at.start : c] @ change[at.start : c]
            moved += units[c]
            snap(moved)
            np.subtract(moved, units[c], out=change[c])
            units[c] = moved
        wish[at.stop :] -= h[at.stop :, at] @ change[at]
    return change


@dataclass
class _Scales:
    """A block column's scales: step of group g = d * sub[g], offset = -dmin * minima[g]."""

    d: F32  # (n,)
    sub: F32  # (groups, n)
    dmin: F32
    minima: F32
    limits: tuple[int, int] | None = None
    offset_limits: tuple[int, int] | None = None
    fixed: F32 | None = None  # the steps of a type whose scales stay as fitted

    @staticmethod
    def read(blocks: Blocks, fmt: ScalarFormat) -> "_Scales":
        step, offset = fmt.grid(blocks)
        if not fmt.step_codes and (offset.any() or "d" not in (blocks.dtype.names or ())):
            return _Scales(step[0], step, step[0], step, fixed=step)
        d = blocks["d"].astype(np.float32)
        dmin = blocks["dmin"].astype(np.float32) if fmt.offset_codes else np.zeros_like(d)
        sub = np.rint(step * reciprocal(d)) if fmt.step_codes else np.ones_like(step)
        minima = np.rint(-offset * reciprocal(dmin))
        return _Scales(d, sub, dmin, minima, fmt.step_codes, fmt.offset_codes)

    def step(self, g: int) -> F32:
        step: F32 = self.d * self.sub[g] if self.fixed is None else self.fixed[g]
        return step

    def write(self, blocks: Blocks, fmt: ScalarFormat) -> None:
        if self.fixed is not None:
            return
        blocks["d"] = self.d.astype(np.float16)
        if self.offset_limits:
            blocks["dmin"] = self.dmin.astype(np.float16)
        if fmt.store:
            fmt.store(blocks, self.sub, self.minima)


def _refit_group(scales: _Scales, g: int, units: F32, pull: F32, h: F32) -> F32:
    """Move a group's integer scale and minimum to their least-squares values, if that helps.

    Moving the step by a and the offset by b moves the weights by m = a u + b 1, u their levels, and
    e^T H e falls by 2 m^T p - m^T H m, p = H e. That is largest where its slope is 0:

        [u^T H u   u^T H 1] [a]   [u^T p]
        [u^T H 1   1^T H 1] [b] = [1^T p]

    units, pull: (size, n), h: (size, size) -> m, (size, n).
    """
    if scales.limits is None:
        return np.zeros_like(units)  # the group is the block: _refit_block does it
    ones = h.sum(axis=0)
    up, uhu, uh1 = _dot(units, pull), _dot(units, h @ units), ones @ units
    if scales.offset_limits is None:
        sub = _moved(scales.sub[g], up * reciprocal(uhu), scales.d, scales.limits)
        a = (sub - scales.sub[g]) * scales.d
        better = a * (2 * up - a * uhu) > 0
        scales.sub[g] = np.where(better, sub, scales.sub[g])
        return np.where(better, a, np.float32(0)) * units
    p1, h11 = pull.sum(axis=0), np.float32(ones.sum())
    det = uhu * h11 - uh1 * uh1
    sound = det > np.float32(1e-4) * uhu * h11  # or u is constant, and a step does what b does
    wish = np.where(sound, (up * h11 - p1 * uh1) * reciprocal(det), up * reciprocal(uhu))
    sub = _moved(scales.sub[g], wish, scales.d, scales.limits)
    a = (sub - scales.sub[g]) * scales.d
    # the offset that suits the step as it was rounded
    minima = _moved(scales.minima[g], (a * uh1 - p1) / h11, scales.dmin, scales.offset_limits)
    b = (scales.minima[g] - minima) * scales.dmin
    better = 2 * (a * up + b * p1) - a * (a * uhu + 2 * b * uh1) - b * b * h11 > 0
    scales.sub[g] = np.where(better, sub, scales.sub[g])
    scales.minima[g] = np.where(better, minima, scales.minima[g])
    change: F32 = np.where(better, a, np.float32(0)) * units + np.where(better, b, np.float32(0))
    return change


def _moved(code: F32, change: F32, scale: F32, limits: tuple[int, int]) -> F32:
    """The integer nearest to where code * scale changes by so much."""
    moved: F32 = np.clip(np.rint(code + change * reciprocal(scale)), *limits)
    return moved


def _refit_block(scales: _Scales, units: F32, error: F32, pull: F32, h: F32, group: int) -> None:
    """Move a block's d (and dmin) to their least-squares values, if that helps."""
    if scales.fixed is not None:
        return
    _refit(scales.d, units * np.repeat(scales.sub, group, axis=0), error, pull, h)
    if scales.offset_limits:
        _refit(scales.dmin, -np.repeat(scales.minima, group, axis=0), error, pull, h)


def _refit(scale: F32, along: F32, error: F32, pull: F32, h: F32) -> None:
    """Move a float16 scale, (n,), to its least-squares value, if that helps.

    Moving it by a moves the weights by a u, u = along, and e^T H e falls by
    2 a u^T p - a^2 u^T H u: most at a = u^T p / u^T H u.
    """
    h_along = h @ along
    slope, curve = _dot(pull, along), _dot(along, h_along)
    new = (scale + slope * reciprocal(curve)).astype(np.float16).astype(np.float32)
    change = new - scale
    change *= change * (2 * slope - change * curve) > 0
    scale += change
    error -= change * along
    pull -= change * h_along


def _dot(a: F32, b: F32) -> F32:
    """Sum of a * b over axis 0: (size, n) -> (n,)."""
    sums: F32 = np.einsum("in,in->n", a, b)
    return sums
