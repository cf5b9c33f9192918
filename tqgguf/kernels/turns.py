"""Weights that are rounded in turn, some at once, each making up for those before it."""

from collections.abc import Callable
from functools import cache

import numpy as np

from tqgguf.kernels.arrays import (
    add_to_diagonal,
    empty,
    in_place,
    moved,
    namespace,
    parts,
    small_product,
)
from tqgguf.kernels.dtypes import F32

Snap = Callable[[F32], None]

_STRIP = 8  # turns between two updates of all the rest


def in_turn(
    turned: F32,
    x: F32,
    wanted: F32,
    levels: F32,
    w: F32,
    step: F32,
    inverse: F32,
    *,
    at_once: int,
    snap: Snap,
) -> None:
    """Round w, (size, n), to levels times step, at_once rows at a time.

    x: at first what is asked of the weights if no other is rounded, then the errors. turned: (size,
    size), how much of a weight's error (column) is added to what is asked of one that follows
    (row); nothing for those of the same turn and before, and 1 on the diagonal. Written: levels,
    and wanted, what was asked of the weights at last. inverse: 1 / step. All but turned are (size,
    n).
    """
    xp, size = namespace(w), w.shape[0]
    multiply, subtract, times = in_place(xp.multiply), in_place(xp.subtract), small_product(w)
    values, strip = empty((at_once, w.shape[1]), w), _STRIP * at_once
    rows = zip(*(parts(a, at_once) for a in (x, wanted, levels, w, step, inverse)), strict=True)
    for begin in range(0, size, strip):
        end = min(begin + strip, size)
        here = x[begin:end, :]
        for turn in parts(turned[begin:end, begin:end], at_once):
            error, target, level, own, scale, unit = next(rows)
            times(turn, here, out=target)
            multiply(target, unit, out=level)
            snap(level)
            multiply(level, scale, out=values)
            subtract(own, values, out=error)
        if end < size:
            x[end:, :] += turned[end:, begin:end] @ here


def alone(turned: F32, at_once: int) -> F32:
    """The same without what is between columns of one turn or comes before, 1 on the diagonal."""
    own: F32 = namespace(turned).astype(turned, namespace(turned).float32)
    own = own * moved(_before(own.shape[0], at_once), own)
    add_to_diagonal(own, 1)
    return own


@cache
def _before(size: int, at_once: int) -> F32:
    """1 where the column comes in an earlier turn than the row: (size, size)."""
    turn = np.arange(size) // at_once
    return (turn[:, None] > turn[None, :]).astype(np.float32)
