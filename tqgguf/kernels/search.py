"""Find the nearest code of a weight on a grid: step * levels[code] + offset.

Levels are ascending integers: consecutive ones are found by rounding, others by a table.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np

from tqgguf.kernels.dtypes import F32, U8

_MARGIN = 1.4  # how far beyond its outermost level `snap` may be asked


class Table(NamedTuple):
    """The nearest level of every half-integer cell: cell 0 starts at `start`.

    The midpoint between two integers is a multiple of 1/2, so half-integer cells are exact.
    """

    start: np.float32
    values: F32
    indices: U8


def snap(u: F32, levels: F32, out: F32) -> None:
    """Write the nearest level of every u into out (which may be u itself): float32 of any shape.

    For levels that are not consecutive, |u| must not exceed 1.4 times the outermost level.
    """
    if is_uniform(levels):
        np.rint(u, out=out)
        np.clip(out, levels[0], levels[-1], out=out)
    else:
        table = nearest_table(levels.tobytes())
        np.take(table.values, _cells(u, table, out), out=out, mode="clip")


def snapper(levels: F32) -> Callable[[F32], None]:
    """A function that moves the values of an array to their nearest levels, in place.

    For many small arrays: what there is to know of the levels is looked up once.
    """
    low, high = float(levels[0]), float(levels[-1])
    table = None if is_uniform(levels) else nearest_table(levels.tobytes())

    def snap(u: F32) -> None:
        np.maximum(u, low, out=u)
        np.minimum(u, high, out=u)
        if table is None:
            np.rint(u, out=u)
        else:
            np.take(table.values, _cells(u, table, u), out=u, mode="clip")

    return snap


def nearest(x: F32, step: F32, offset: F32, levels: F32) -> U8:
    """The index of the nearest level for every weight.

    x: (..., size, n), step and offset broadcast against it, levels: (k,), all float32
    -> uint8 of x's shape. Where step is 0 every level decodes to the offset, and the index is that
    of the level nearest 0.
    """
    inverse = reciprocal(step)
    if offset.any():
        target = x - offset
        target *= inverse
    else:
        target = x * inverse
    np.clip(target, levels[0], levels[-1], out=target)
    if is_uniform(levels):
        np.rint(target, out=target)
        if levels[0]:
            target -= levels[0]
        indices: U8 = target.astype(np.uint8)
        return indices
    table = nearest_table(levels.tobytes())
    return np.take(table.indices, _cells(target, table, target), mode="clip")


def reciprocal(step: F32) -> F32:
    """1 / step as float32, and 0 where step is 0 or too small to have a reciprocal."""
    tiny = np.abs(step) < np.float32(1e-38)
    safe: F32 = np.where(tiny, np.float32(np.inf), step)
    return np.float32(1) / safe


def is_uniform(levels: F32) -> bool:
    """Whether the levels are consecutive integers."""
    return bool(levels[-1] - levels[0] == len(levels) - 1)


@cache
def nearest_table(levels: bytes) -> Table:
    """The table of these float32 levels, given as bytes because it is made once and kept."""
    values = np.frombuffer(levels, np.float32)
    reach = np.ceil(np.abs(values).max() * np.float32(_MARGIN))
    centres = np.arange(-reach, reach, 0.5, dtype=np.float32) + np.float32(0.25)
    indices = np.searchsorted((values[1:] + values[:-1]) / 2, centres).astype(np.uint8)
    return Table(-reach, values[indices], indices)


def _cells(u: F32, table: Table, out: F32) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint16]]":
    """The cell of every u, through out as scratch."""
    np.multiply(u, np.float32(2), out=out)
    out -= 2 * table.start
    return out.astype(np.uint16)
