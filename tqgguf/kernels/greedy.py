"""The first rounding of a matrix: its columns in turn, each making up for those before it.

H = V V^T with V upper triangular, so e^T H e is the sum over columns c of (V^T e)_c^2. That of c
depends on e_c and the errors before it alone, and is least where e_c makes up for them.

Any order of columns will do, and the error is about the sum of V_cc^2: so columns of much energy
come first, when all others can still make up for them. Columns of a block stay together, because
its scales are fitted to what earlier errors made of its weights. Units of about 128 columns are
whole runs of 32, of which one column each is rounded at a time: four of them, which do not see each
other's errors, to a call. In a unit columns are in another order than in V: with U upper
triangular, U U^T = S V_uu V_uu^T S^T, S that order, what is asked of column c is

    w_c + (sum over j < c of U_jc e_j + (U^T x)_c) / U_cc,

where x = S V_uu^-T carried is what all earlier errors, carried = V_au^T e_a, ask of the unit were
none of it rounded; scales are fitted to w + x.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqgguf.kernels.arrays import (
    empty,
    is_numpy,
    moved,
    namespace,
    to_numpy,
)
from tqgguf.kernels.dtypes import F32, I64, Blocks
from tqgguf.kernels.protocols import Runner, ScalarFormat
from tqgguf.kernels.refitting import Scales
from tqgguf.kernels.scales import as_groups
from tqgguf.kernels.search import reciprocal
from tqgguf.kernels.turns import Snap, alone, in_turn

UNIT = 128  # columns of which a few are rounded at once
_RUN = 32  # columns of which one is; no block has fewer
_KEPT = 256  # columns of the largest block


def falling(diagonal: NDArray[Any]) -> I64:
    """The order in which columns are rounded: H's diagonal, (n_in,) -> (n_in,).

    Blocks of any type stay together; they, and the runs of 32 within them, come by falling energy.
    """
    size = len(diagonal)
    kept, run = math.gcd(size, _KEPT), math.gcd(size, _RUN)
    energy = diagonal.reshape(-1, kept // run, run).sum(axis=2)
    outer = np.argsort(-energy.sum(axis=1), kind="stable")[:, None]
    inner = np.argsort(-energy, axis=1, kind="stable")
    runs = (outer * (kept // run) + inner[outer[:, 0]]).reshape(-1, 1)
    order: I64 = (runs * run + np.arange(run)).reshape(-1)
    return order


def units(n_in: int) -> list[slice]:
    """Columns of which a few are rounded at once, in the order in which all are."""
    least = math.gcd(n_in, UNIT)
    count, steps = -(-n_in // UNIT), n_in // least
    return [slice(*e) for e in pairwise(least * (steps * k // count) for k in range(count + 1))]


def visits(diagonal: NDArray[Any]) -> I64:
    """The order of visits in a unit: the column of most energy of every run, then the next."""
    run = math.gcd(len(diagonal), _RUN)
    inner = np.argsort(-diagonal.reshape(-1, run), axis=1, kind="stable")
    begin = np.arange(0, len(diagonal), run)[:, None]
    visit: I64 = (begin + inner).T.reshape(-1)
    return visit


@dataclass(frozen=True)
class Factor:
    """V of H in another order, and what rounding takes of H.

    order: (n_in,), the columns in that order. v: (n_in, n_in), upper triangular. inverses: those of
    blocks on its diagonal, (n_in, size), as `tqgguf.kernels.feedback` has them. Of all units, one
    below the other, (n_in, <= 128): asked, S V_uu^-T; pushes, U^T asked, and turned, U^T without
    what is between columns that are rounded at once, both divided by U_cc. spans, visited: what
    `tqgguf.kernels.revisiting` takes of all panels of H.
    """

    order: I64
    spans: tuple[int, ...]
    v: F32
    inverses: F32
    asked: F32
    pushes: F32
    turned: F32
    visited: F32

    @property
    def arrays(self) -> tuple[F32, ...]:
        """What may be on a device."""
        triangular = self.v, self.inverses
        return (*triangular, self.asked, self.pushes, self.turned, self.visited)


def prepared(v: F32, diagonal: NDArray[Any]) -> list[F32]:
    """`Factor`'s asked, pushes and turned: v and H's diagonal in the order of rounding."""
    all_units = units(v.shape[0])
    width = max(u.stop - u.start for u in all_units)
    arrays: list[F32] = [empty((v.shape[0], width), v) for _ in range(3)]
    for here in all_units:
        found = _turned(v[here, here], visits(diagonal[here]))
        for array, part in zip(arrays, found, strict=True):
            array[here, : here.stop - here.start] = part
    return arrays


def _turned(own: F32, visit: I64) -> Iterator[F32]:
    xp = namespace(own)
    double, index = xp.astype(own, xp.float64), moved(visit, own)
    rows = xp.take(double, index, axis=0)
    upper = xp.flip(xp.linalg.cholesky(xp.flip(rows @ rows.T)))
    lower, asked = (
        (upper / xp.linalg.diagonal(upper)).T,
        xp.take(_inverse(double).T, index, axis=0),
    )
    found = asked, lower @ asked, alone(lower, _at_once(own.shape[0]))
    return (xp.astype(a, xp.float32) for a in found)


def _inverse(upper: F32) -> F32:
    """The inverse of an upper triangular matrix, by halves: it takes a third of a general one's."""
    xp, size = namespace(upper), upper.shape[0]
    if size <= _RUN * 2:
        inverse: F32 = xp.linalg.inv(upper)
        return inverse
    first, rest = slice(0, size // 2), slice(size // 2, size)
    found: F32 = xp.zeros_like(upper)
    found[first, first] = _inverse(upper[first, first])
    found[rest, rest] = _inverse(upper[rest, rest])
    found[first, rest] = -found[first, first] @ upper[first, rest] @ found[rest, rest]
    return found


def _at_once(size: int) -> int:
    """How many columns of a unit are rounded at once."""
    return size // math.gcd(size, _RUN)


@dataclass(frozen=True)
class Turns:
    """Which weight comes when, of a type's blocks. Columns are called by their place in V.

    order: (n_in,), their numbers in the matrix. diagonal: of H, in the matrix's order.
    """

    order: I64
    diagonal: NDArray[Any]
    block: int
    group: int

    @cached_property
    def kept(self) -> int:
        """Columns next to each other in V whose blocks are whole and next to each other."""
        n_in = len(self.order)
        run = math.gcd(n_in, _RUN)
        return run if self.block <= run else math.gcd(n_in, _KEPT)

    @cached_property
    def visit(self) -> I64:
        """All columns in the order of visits."""
        energy = self.diagonal[self.order]
        return np.concatenate([u.start + visits(energy[u]) for u in units(len(energy))])

    @cached_property
    def whole(self) -> I64:
        """All columns, those of a block as they are in it, blocks in the order of fitting."""
        begin = np.arange(0, len(self.order), self.kept)[:, None]
        whole: I64 = begin + np.argsort(self.order.reshape(-1, self.kept), axis=1)
        return whole.reshape(-1)

    @cached_property
    def fitted(self) -> I64:
        """The same by their places among the visits."""
        return np.argsort(self.visit)[self.whole]

    @cached_property
    def blocks(self) -> I64:
        """The blocks in the order of fitting."""
        return self.order[self.whole[:: self.block]] // self.block

    @cached_property
    def groups(self) -> I64:
        """The groups in the order of fitting."""
        return self.order[self.whole[:: self.group]] // self.group

    @cached_property
    def group_of(self) -> I64:
        """The group of each visit, by its place in that order."""
        return np.argsort(self.whole)[self.visit] // self.group

    def spans(self) -> list[list[slice]]:
        """Units whose scales are fitted together."""
        found = units(len(self.order))
        each = max(1, self.kept // UNIT)
        return [found[at : at + each] for at in range(0, len(found), each)]


@dataclass(frozen=True)
class Rounding:
    """A first rounding in the making; scales: in the order of fitting."""

    factor: Factor
    turns: Turns
    fmt: ScalarFormat
    snap: Snap
    run: Runner
    scales: Scales
    blocks: Blocks

    @cached_property
    def squares(self) -> F32:
        """V_cc^2, (n_in,)."""
        v = self.factor.v
        squares: F32 = to_numpy(namespace(v).linalg.diagonal(v)) ** 2
        return squares

    def round(self, w: F32) -> tuple[F32, F32]:
        """All weights, (n_in, n) -> levels and errors, like it; blocks and scales are written."""
        xp, turns, order = namespace(w), self.turns, self.factor.order
        pushed = xp.take(w, moved(order[turns.visit], w), axis=0)
        units, errors = xp.empty_like(w), xp.empty_like(w)
        for span in turns.spans():
            self._round_span(span, pushed, units, errors)
        back = np.argsort(order)
        found = (units, np.argsort(turns.visit)[back]), (errors, back)
        levels, error = (xp.take(a, moved(index, w), axis=0) for a, index in found)
        return levels, error

    def _round_span(self, span: list[slice], w: F32, units: F32, errors: F32) -> None:
        """Fit the scales of some units to what is asked of their weights, then round these.

        w, units: in the order of visits, errors: in V's.
        """
        factor, here = self.factor, slice(span[0].start, span[-1].stop)
        carried = factor.v[: here.start, here].T @ errors[: here.start, :]
        scales = self._fit(here, w[here, :] + self._solve(span, carried))
        for unit in span:
            inside = slice(unit.start - here.start, unit.stop - here.start)
            own, before = carried[inside, :], slice(here.start, unit.start)
            if inside.start:
                own += factor.v[before, unit].T @ errors[before, :]
            x = w[unit, :] + _of(unit, factor.pushes) @ own
            self._round_unit(unit, here.start, w, x, scales, units)
            errors[unit, :] = self._unvisited(unit, x)

    def _solve(self, span: list[slice], carried: F32) -> F32:
        """What errors ask of the weights of a span if none of these is rounded: V_ss^-T carried.

        carried: (size, n) -> like it, in the order of visits.
        """
        v, begin = self.factor.v, span[0].start
        asked: F32 = namespace(carried).empty_like(carried)
        moves: F32 = namespace(carried).empty_like(carried)
        for unit in span:
            inside = slice(unit.start - begin, unit.stop - begin)
            rest = carried[inside, :]
            if inside.start:
                rest = rest - v[begin : unit.start, unit].T @ moves[: inside.start, :]
            asked[inside, :] = _of(unit, self.factor.asked) @ rest
            if unit != span[-1]:
                moves[inside, :] = self._unvisited(unit, asked[inside, :])
        return asked

    def _unvisited(self, unit: slice, x: F32) -> F32:
        """Rows in the order of a unit's visits, in V's order."""
        index = moved(np.argsort(self.turns.visit[unit]), x)
        rows: F32 = namespace(x).take(x, index, axis=0)
        return rows

    def _fit(self, here: slice, wanted: F32) -> tuple[F32, F32]:
        """Fit scales to weights -> the groups' steps and offsets, (n_groups, n)."""
        xp, turns, block = namespace(wanted), self.turns, self.fmt.block_size
        n, whole = wanted.shape[1], turns.whole[here]
        first, count = here.start // block, len(whole) // block
        index = moved(turns.fitted[here] - here.start, wanted)
        x = as_groups(xp.take(wanted, index, axis=0), block)
        squares = np.repeat(self.squares[whole].reshape(count, block).T, n, axis=1)
        scales = self.scales.of(first, first + count)
        if self.fmt.choose and not is_numpy(wanted):
            self.run(_Choice(self.fmt.choose), *scales.arrays, x, moved(squares, wanted))
            return scales.steps(), scales.offsets()
        blocks = self.fmt.fit(to_numpy(x), squares).reshape(count, n)
        self.blocks[turns.blocks[first : first + count]] = blocks
        return scales.read(blocks, self.fmt)

    def _round_unit(
        self,
        unit: slice,
        begin: int,
        w: F32,
        x: F32,
        scales: tuple[F32, F32],
        units: F32,
    ) -> None:
        """Round the weights of a unit in turn; x: what is asked of them, which becomes errors."""
        turns, size = self.turns, unit.stop - unit.start
        group = moved(turns.group_of[unit] - begin // self.fmt.group_size, w)
        kind = self.scales.kind
        offset = kind.fixed or kind.offset_limits is not None
        turn = _Turn(_at_once(size), offset, self.fmt.levels.tobytes(), self.snap)
        turned = _of(unit, self.factor.turned)
        self.run(turn, units[unit, :], x, w[unit, :], *scales, group, turned)


def _of(unit: slice, arrays: F32) -> F32:
    """A unit's array, (size, size)."""
    own: F32 = arrays[unit, : unit.stop - unit.start]
    return own


@dataclass(frozen=True)
class _Choice:
    """Choose the scales of some blocks."""

    choose: Any

    def __call__(self, d: F32, sub: F32, dmin: F32, minima: F32, x: F32, squares: F32) -> None:
        """The scales' arrays, (blocks or groups, n), weights and importance (size, blocks * n)."""
        xp, count = namespace(x), d.shape[0]
        sub[...] = 1
        chosen = self.choose(x, squares)
        for scales, found in zip((d, sub, dmin, minima), chosen, strict=False):
            by_block = xp.reshape(found, (-1, count, scales.shape[1]))
            scales[...] = xp.reshape(xp.permute_dims(by_block, (1, 0, 2)), scales.shape)


@dataclass(frozen=True)
class _Turn:
    """Round the weights of a unit, some at once, each making up for those before it.

    at_once: how many. offset: whether the type has offsets.
    """

    at_once: int
    offset: bool
    levels: bytes
    snap: Snap = field(compare=False)

    def __call__(
        self, units: F32, x: F32, w: F32, steps: F32, offsets: F32, group: I64, turned: F32
    ) -> None:
        """All (size, n) in the order of visits, but steps and offsets (groups, n).

        group: (size,), turned: (size, size). x: what is asked of the weights, which becomes errors.
        """
        xp = namespace(w)
        step, inverse = (xp.take(a, group, axis=0) for a in (steps, reciprocal(steps)))
        if self.offset:
            offset = xp.take(offsets, group, axis=0)
            w = w - offset
            x -= offset
        arrays = turned, x, xp.empty_like(x), units, w, step, inverse
        in_turn(*arrays, at_once=self.at_once, snap=self.snap)
