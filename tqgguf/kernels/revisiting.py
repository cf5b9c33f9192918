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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from tqgguf.kernels.arrays import (
    dot,
    in_place,
    moved,
    namespace,
    replace_where,
    small_product,
)
from tqgguf.kernels.dtypes import F32, I64
from tqgguf.kernels.refitting import Movable, Scales, refit_integers, refit_scales
from tqgguf.kernels.search import reciprocal

Snap = Callable[[F32], None]

_PANEL = 256  # columns between two products with all of H; a multiple of every type's block
_SPAN = 32  # columns of which one is visited at a time, or more
_TOGETHER = 2.0  # sum of the correlations with an input of those visited with it, at most
_SKEW = 5  # places by which a span's order is ahead of that of the span before
_RESCALED = 64  # columns whose scales change together
_STRIP = 64  # columns between two updates of the rest of a panel, about


@dataclass(frozen=True)
class Panel:
    """Some columns of H, and what revisiting them takes.

    own: (size, size), H within them, and `blocks` and `groups`, (count, size, size), within a
    type's. The rest is in the order of visits: order, (size,), the columns; back, how to undo that;
    group, the group of each; turned: own divided by its diagonal, (size, 1); together: (places,
    spans, spans), H within the columns that are visited at once.
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


def panel(own: F32, here: slice, block: int, group: int) -> Panel:
    """What there is to know of some columns of H: own (size, size); sizes of blocks and groups."""
    xp = namespace(own)
    order, turned, spans = _turned(own)
    back, groups = np.argsort(order), order // group
    order, back, groups = (moved(a, own) for a in (order, back, groups))
    diagonal = xp.asarray(xp.linalg.diagonal(turned)[:, None], copy=True)
    return Panel(
        *(here, own, _within(own, block), _within(own, group), order, back, groups),
        *(diagonal, turned / diagonal, _within(turned, spans)),
    )


def _turned(own: F32) -> tuple[I64, F32, int]:
    """The order of visits, H in that order, and how many columns may be visited at once."""
    xp, size = namespace(own), own.shape[0]
    spans = max(1, size // _SPAN)
    while True:
        order = _order(size, spans)
        index = moved(order, own)
        turned = xp.take(xp.take(own, index, axis=0), index, axis=1)
        if spans <= 2 or _going_together(_within(turned, spans)) <= _TOGETHER:
            return order, turned, spans
        spans = next(count for count in range(spans // 2, 0, -1) if size % count == 0)


def _going_together(h: F32) -> float:
    """The mean over inputs of the sum of |correlations| with those visited with it, and itself.

    Below 2 all of them may move at once (Jacobi's method converges). h: (places, spans, spans).
    """
    xp = namespace(h)
    root = xp.sqrt(xp.linalg.diagonal(h))
    correlations = xp.abs(h) / (root[:, :, None] * root[:, None, :])
    count: int = math.prod(root.shape)
    return float(xp.sum(correlations)) / count


def _order(size: int, spans: int) -> I64:
    """The columns of a panel in the order of visits: one of every span, then the next of each."""
    length = size // spans
    place, span = np.divmod(np.arange(size), spans)
    order: I64 = span * length + (place + _SKEW * span) % length
    return order


def _within(h: F32, size: int) -> F32:
    """Blocks on the diagonal: (n, n) -> (n / size, size, size)."""
    if size == h.shape[0]:
        return h[None, :, :]
    parts: F32 = namespace(h).stack(
        [h[at : at + size, at : at + size] for at in range(0, h.shape[0], size)]
    )
    return parts


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
    old, wish = xp.take(units, order, axis=0), xp.take(pull, order, axis=0)
    wish /= diagonal
    step, inverse = (xp.take(a, group, axis=0) for a in (steps, reciprocal(steps)))
    levels, change = xp.empty_like(old), xp.empty_like(old)
    _visit(old, wish, step, inverse, turned, levels, change, together.shape[1], snap)
    places = xp.reshape(change, (together.shape[0], -1, change.shape[1]))
    wish *= 2 * diagonal
    wish -= xp.reshape(together @ places, change.shape)
    better = dot(change, wish) > 0
    replace_where(units, better, xp.take(levels, back, axis=0))
    error -= xp.take(change, back, axis=0) * xp.astype(better, units.dtype)


def _visit(
    old: F32,
    wish: F32,
    step: F32,
    inverse: F32,
    turned: F32,
    levels: F32,
    change: F32,
    spans: int,
    snap: Snap,
) -> None:
    """Round place after place: all (size, n) and in the order of visits, but turned (size, size).

    wish: how far weights should move, which is kept up to date until they are visited. Written:
    levels, and change, by how much that moved the weights.
    """
    xp, size = namespace(old), old.shape[0]
    multiply, subtract, times = in_place(xp.multiply), in_place(xp.subtract), small_product(old)
    strip = max(1, _STRIP // spans) * spans
    for begin in range(0, size, strip):
        end = min(begin + strip, size)
        for at in range(begin, end, spans):
            here = slice(at, at + spans)
            own, level, moved = wish[here, :], levels[here, :], change[here, :]
            if at > begin:
                own -= times(turned[here, begin:at], change[begin:at, :])
            multiply(own, inverse[here, :], out=level)
            level += old[here, :]
            snap(level)
            subtract(level, old[here, :], out=moved)
            moved *= step[here, :]
        if end < size:
            wish[end:, :] -= turned[end:, begin:end] @ change[begin:end, :]
