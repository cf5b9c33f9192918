"""Visit the scales and codes of a rounded matrix again, each given all the others as they are.

This is coordinate descent on e^T H e, e the error of a row, for `tqgguf.kernels.feedback`. Columns
are cut into panels of about 256, one after the other. In a panel the same place of every 32 columns
is visited at once: so a call works on eight times as many numbers, and few rows are enough. Codes
that are visited together do not see each other move. Inputs that go together would make them
overshoot, and networks have such at distances of powers of two (heads that share their values), so
each run of 32 begins some places after that of the one before. Where they still go together, fewer
are visited at once; and what did not lessen a row's error is undone.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np

from tqgguf.kernels.arrays import (
    add_to_diagonal,
    dot,
    empty,
    moved,
    namespace,
    replace_where,
)
from tqgguf.kernels.dtypes import F32, I64
from tqgguf.kernels.refitting import Movable, Scales, refit_integers, refit_scales
from tqgguf.kernels.search import reciprocal
from tqgguf.kernels.turns import Snap, alone, in_turn

_PANEL = 256  # columns between two products with all of H; a multiple of every type's block
_SPAN = 32  # columns of which one is visited at a time, or more
_TOGETHER = 2.0  # sum of the correlations with an input of those visited with it, at most
_SKEW = 5  # places by which a span's order is ahead of that of the span before
_RESCALED = 128  # columns whose scales change together


@dataclass(frozen=True)
class Panel:
    """Some columns of H, and what revisiting them takes.

    own: (size, size), H within them, and `blocks` and `groups`, (count, size, size), within a
    type's. The rest is in the order of visits: order, (size,), the columns; back, how to undo that;
    group, the group of each; diagonal, (size, 1), that of H; turned: as
    `tqgguf.kernels.turns` has it, H divided by the diagonal of its rows; together: (places, spans,
    spans), H within the columns that are visited at once.
    """

    here: slice
    own: F32
    blocks: F32
    groups: F32
    order: I64
    back: I64
    group: I64
    diagonal: F32
    turned: F32
    together: F32

    @property
    def arrays(self) -> tuple[F32 | I64, ...]:
        """What a visit reads."""
        return (
            *(self.own, self.blocks, self.groups, self.order, self.back, self.group),
            *(self.diagonal, self.turned, self.together),
        )


def panels(n_in: int) -> list[slice]:
    """Columns that are revisited by one product with H: whole blocks of any type."""
    unit = math.gcd(n_in, _PANEL)
    units, count = n_in // unit, max(1, round(n_in / _PANEL))
    return [slice(*e) for e in pairwise(unit * (units * k // count) for k in range(count + 1))]


def panel(own: F32, here: slice, spans: int, visited: F32, block: int, group: int) -> Panel:
    """What there is to know of some columns of H, (size, size) as `own`.

    spans, visited: as `visits` has them. block, group: sizes.
    """
    xp, size = namespace(own), own.shape[0]
    order, back = _order(size, spans), _back(size, spans)
    index, undone, groups = (moved(a, own) for a in (order, back, order // group))
    diagonal = xp.take(xp.linalg.diagonal(own), index, axis=0)[:, None]
    arrays = index, undone, groups, diagonal, visited[here, :size], _together(own, spans)
    return Panel(here, own, _within(own, block), _within(own, group), *arrays)


def visits(h: F32, added: float) -> tuple[tuple[int, ...], F32]:
    """How visits take h + added I, (n_in, n_in), whatever the type.

    Returned: how many columns of every panel may be visited at once, and `Panel.turned` of all of
    them, one below the other, (n_in, size).
    """
    xp, counts, found = namespace(h), [], panels(h.shape[0])
    visited: F32 = empty((h.shape[0], max(p.stop - p.start for p in found)), h)
    for here in found:
        own = xp.asarray(h[here, here], copy=True)
        add_to_diagonal(own, added)
        spans = _spans(own)
        index = moved(_order(own.shape[0], spans), own)
        turned = xp.take(xp.take(own, index, axis=0), index, axis=1)
        turned /= xp.take(xp.linalg.diagonal(own), index, axis=0)[:, None]  # no view of turned
        visited[here, : own.shape[0]] = alone(turned, spans)
        counts.append(spans)
    return tuple(counts), visited


def _spans(own: F32) -> int:
    """How many columns may be visited at once."""
    size = own.shape[0]
    spans: int = max(1, size // _SPAN)
    while spans > 2 and _going_together(_together(own, spans)) > _TOGETHER:
        spans = next(count for count in range(spans // 2, 0, -1) if size % count == 0)
    return spans


def _going_together(h: F32) -> float:
    """The mean over inputs of the sum of |correlations| with those visited with it, and itself.

    Below 2 all of them may move at once (Jacobi's method converges). h: (places, spans, spans).
    """
    xp = namespace(h)
    root = xp.sqrt(xp.linalg.diagonal(h))
    correlations = xp.abs(h) / (root[:, :, None] * root[:, None, :])
    count: int = math.prod(root.shape)
    return float(xp.sum(correlations)) / count


@cache
def _order(size: int, spans: int) -> I64:
    """The columns of a panel in the order of visits: one of every span, then the next of each."""
    length = size // spans
    place, span = np.divmod(np.arange(size), spans)
    order: I64 = span * length + (place + _SKEW * span) % length
    return order


@cache
def _back(size: int, spans: int) -> I64:
    """How to undo that."""
    return np.argsort(_order(size, spans))


@cache
def _pairs(size: int, spans: int) -> I64:
    """Where in (size, size) the pairs of columns are that are visited at once."""
    places = _order(size, spans).reshape(-1, spans)
    pairs: I64 = places[:, :, None] * size + places[:, None, :]
    return pairs.reshape(-1)


def _together(h: F32, spans: int) -> F32:
    """H within the columns that are visited at once: (size, size) -> (places, spans, spans)."""
    xp, size = namespace(h), h.shape[0]
    found = xp.take(xp.reshape(h, (-1,)), moved(_pairs(size, spans), h), axis=0)
    together: F32 = xp.reshape(found, (-1, spans, spans))
    return together


def _within(h: F32, size: int) -> F32:
    """Blocks on the diagonal, a view where there can be one: (n, n) -> (n / size, size, size)."""
    xp, count = namespace(h), h.shape[0] // size
    pairs = xp.permute_dims(xp.reshape(h, (count, size, count, size)), (1, 3, 0, 2))
    blocks: F32 = xp.permute_dims(xp.linalg.diagonal(pairs), (2, 0, 1))
    return blocks


@dataclass(frozen=True)
class Revisit:
    """Refit the scales and round the weights of a panel anew, given everything else."""

    kind: Movable
    whole: bool  # also the scales of whole blocks that have integers for their groups
    levels: bytes
    snap: Snap = field(compare=False)

    def __call__(self, units: F32, error: F32, *arrays: Any) -> None:
        """The panel's units and error, (size, n), scales, H e (size, n), then `Panel`'s arrays."""
        scales, pull = Scales(self.kind, *arrays[:4]), arrays[4]
        own, blocks, groups, *order = arrays[5:]
        rest = units, error, pull, own
        if not self.kind.fixed:
            scales.settle()
            if self.whole:
                _rescale(scales, refit_scales(scales, units, pull, blocks), *rest, blocks.shape[1])
            if self.kind.limits:
                _rescale(scales, refit_integers(scales, units, pull, groups), *rest, 0)
        _recode(units, error, pull, scales.steps(), *order, snap=self.snap)


def _rescale(
    scales: Scales, new: Scales, units: F32, error: F32, pull: F32, own: F32, block: int
) -> None:
    """Take new scales where they lessen a row's error, those of a few columns after the other.

    block: columns that share what is new.
    """
    xp, size = namespace(units), units.shape[0]
    shape = (*scales.sub.shape[:1], -1, units.shape[1])
    move = xp.reshape(units, shape) * (new.steps() - scales.steps())[:, None, :]
    if scales.kind.offset_limits:
        move += (new.offsets() - scales.offsets())[:, None, :]
    move = xp.reshape(move, units.shape)
    for here in _slices(size, max(_RESCALED, block)):
        pulled = own[:, here] @ move[here, :]
        better = dot(move[here, :], 2 * pull[here, :] - pulled[here, :]) > 0
        taken = xp.astype(better, units.dtype)
        error[here, :] -= move[here, :] * taken
        pull -= pulled * taken
        for old, found in zip(scales.arrays, new.arrays, strict=True):
            if found is old:
                continue
            count = old.shape[0]
            rows = slice(here.start * count // size, here.stop * count // size)
            old[rows, :] = xp.where(better, found[rows, :], old[rows, :])


def _slices(end: int, size: int) -> Iterator[slice]:
    for at in range(0, end, size):
        yield slice(at, min(at + size, end))


def _recode(
    units: F32,
    error: F32,
    pull: F32,
    steps: F32,
    order: I64,
    back: I64,
    group: I64,
    diagonal: F32,
    turned: F32,
    together: F32,
    *,
    snap: Snap,
) -> None:
    """Round all weights of a panel anew, where that lessens a row's error.

    Given all others, the error is least where weight c moves by pull_c / H_cc.
    """
    xp = namespace(units)
    step, inverse = (xp.take(a, group, axis=0) for a in (steps, reciprocal(steps)))
    now = xp.take(units, order, axis=0)
    now *= step
    x = xp.take(pull, order, axis=0)
    x /= diagonal
    x += now
    levels, wanted = xp.empty_like(x), xp.empty_like(x)
    in_turn(turned, x, wanted, levels, now, step, inverse, at_once=together.shape[1], snap=snap)
    # x is by how much less the weights became
    now -= wanted
    now *= 2 * diagonal
    now -= xp.reshape(together @ xp.reshape(x, (together.shape[0], -1, x.shape[1])), x.shape)
    better = dot(x, now) > 0
    replace_where(units, better, xp.take(levels, back, axis=0))
    error += xp.take(x, back, axis=0) * xp.astype(better, units.dtype)
