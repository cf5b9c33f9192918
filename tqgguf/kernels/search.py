"""Find the nearest code of a weight on a grid: step * levels[code] + offset.

Levels are ascending integers: consecutive ones are found by rounding, others by a table.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from tqgguf.kernels.arrays import constant, in_place, is_numpy, moved, namespace
from tqgguf.kernels.dtypes import F32, U8

_FEW = 4  # levels, between which a few comparisons are faster than rounding
_MARGIN = 1.4  # how far beyond its outermost level `snap` may be asked


class Table(NamedTuple):
    """The nearest level of every half-integer cell: cell 0 starts at `start`.

    The midpoint between two integers is a multiple of 1/2, so half-integer cells are exact.
    """

    start: float
    values: F32
    indices: U8


def snap(u: F32, levels: F32, out: F32) -> None:
    """Write the nearest level of every u into out (which may be u itself): float32 of any shape.

    For levels that are not consecutive, |u| must not exceed 1.4 times the outermost level.
    """
    if not is_numpy(u):
        out[...] = u
        snapper(levels, u)(out)
    elif is_uniform(levels):
        np.rint(u, out=out)
        np.clip(out, levels[0], levels[-1], out=out)
    else:
        table = nearest_table(levels.tobytes())
        np.take(table.values, _cells(u, table, out), out=out, mode="clip")


def snapper(levels: F32, x: F32) -> Callable[[F32], None]:
    """A function that moves the values of an array such as x to their nearest levels, in place.

    For many small arrays: what there is to know of the levels is looked up once.
    """
    xp, ends = namespace(x), [float(levels[i]) for i in (0, -1)]
    maximum, minimum = in_place(xp.maximum), in_place(xp.minimum)
    to_level = in_place(getattr(xp, "rint", xp.round)) if is_uniform(levels) else _taker(levels, x)
    bounds = _alike(ends, x)

    def snap(u: F32) -> None:
        low, high = bounds(u)
        maximum(u, low, out=u)
        minimum(u, high, out=u)
        to_level(u, out=u)

    return snap


def _alike(values: Sequence[float], x: F32) -> Callable[[F32], list[Any]]:
    """A function of an array that gives these numbers for calls with it.

    NumPy takes half the time where they are arrays of its shape.
    """
    if not is_numpy(x):
        constants = [constant(value, x) for value in values]
        return lambda _: constants
    made: dict[tuple[int, ...], list[Any]] = {}

    def alike(u: F32) -> list[Any]:
        found = made.get(u.shape)
        if found is None:
            found = made[u.shape] = [np.full(u.shape, value, np.float32) for value in values]
        return found

    return alike


def _taker(levels: F32, x: F32) -> Callable[..., None]:
    """A function that puts the nearest of these levels, out of a table, into out."""
    xp, table = namespace(x), nearest_table(levels.tobytes())
    values = _values_where(levels.tobytes(), x)

    begin = _alike([2 * table.start], x)

    def take(u: F32, out: F32) -> None:
        np.add(u, u, out=out)
        (low,) = begin(u)
        np.subtract(out, low, out=out)
        values.take(out.astype(np.uint16), out=out, mode="clip")

    def take_elsewhere(u: F32, out: F32) -> None:
        cells = xp.reshape(_cells(u, table, out), (-1,))
        out[...] = xp.reshape(xp.take(values, cells), out.shape)

    return take if is_numpy(x) else take_elsewhere


_MOVED: dict[tuple[bytes, str], Any] = {}  # tables are small, and moving one waits for the device


def _values_where(levels: bytes, x: F32) -> Any:
    """The values of a table in x's library and where x is, moved there once."""
    values = nearest_table(levels).values
    if is_numpy(x):
        return values
    key = levels, f"{type(x)} {x.device}"
    if key not in _MOVED:
        _MOVED[key] = moved(values, x)
    return _MOVED[key]


def indices(units: F32, levels: F32) -> U8:
    """The index of every level: float32 of any shape, all of them levels -> uint8."""
    xp = namespace(units)
    if is_uniform(levels):
        uniform: U8 = xp.astype(units - float(levels[0]), xp.uint8)
        return uniform
    table = nearest_table(levels.tobytes())
    cells = xp.reshape(_cells(units, table, xp.empty_like(units)), (-1,))
    found: U8 = xp.reshape(xp.take(moved(table.indices, units), cells), units.shape)
    return found


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
    if len(levels) <= _FEW:
        return _count_below(target, (levels[1:] + levels[:-1]) * np.float32(0.5))
    np.clip(target, levels[0], levels[-1], out=target)
    if is_uniform(levels):
        np.rint(target, out=target)
        if levels[0]:
            target -= levels[0]
        indices: U8 = target.astype(np.uint8)
        return indices
    table = nearest_table(levels.tobytes())
    return np.take(table.indices, _cells(target, table, target), mode="clip")


def _count_below(u: F32, edges: F32) -> U8:
    """How many of the edges are below each u: float32 of any shape -> uint8."""
    count: U8 = (u > edges[0]).view(np.uint8)
    for edge in edges[1:]:
        count += (u > edge).view(np.uint8)
    return count


def reciprocal(step: F32) -> F32:
    """1 / step as float32, and 0 where step is 0 or too small to have a reciprocal."""
    xp, least = namespace(step), np.float32(1e-38).item()
    if is_numpy(step) and np.abs(step).min(initial=1) >= least:
        whole: F32 = np.float32(1) / step
        return whole
    tiny = xp.abs(step) < least
    safe: Any = xp.where(tiny, constant(np.inf, step), step)
    inverse: F32 = 1 / safe
    return inverse


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
    return Table(-float(reach), values[indices], indices)


def _cells(u: F32, table: Table, out: F32) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint16]]":
    """The cell of every u, through out as scratch."""
    xp = namespace(u)
    in_place(xp.multiply)(u, constant(2.0, u), out=out)
    out -= 2 * table.start
    return out.astype(np.uint16) if is_numpy(out) else xp.astype(out, xp.int32)
