"""Find the nearest code of a weight on a grid: step * levels[code] + offset."""

import numpy as np

from tqgguf.kernels.dtypes import F32, U8


def nearest(x: F32, step: F32, offset: F32 | None, levels: F32) -> U8:
    """The index of the nearest level for every weight.

    x: (size, n), step and offset: (n,), levels: (k,) ascending, all float32 -> (size, n) uint8.
    Where step is 0 every level decodes to the offset and the index is that of level 0.
    """
    target = x - offset if offset is not None else x.copy()
    target *= reciprocal(step)
    if is_uniform(levels):
        return _round(target, levels)
    return _look_up(target, levels)


def reciprocal(step: F32) -> F32:
    """1 / step as float32, and 0 where step is 0 or too small to have a reciprocal."""
    tiny = np.abs(step) < np.float32(1e-38)
    return np.divide(np.float32(1), step, out=np.zeros_like(step), where=~tiny)


def is_uniform(levels: F32) -> bool:
    """Whether the levels are consecutive integers."""
    return bool(np.all(np.diff(levels) == 1))


def _round(target: F32, levels: F32) -> U8:
    """Nearest of consecutive integers; works in place."""
    np.rint(target, out=target)
    np.clip(target, levels[0], levels[-1], out=target)
    target -= levels[0]
    return target.astype(np.uint8)


def _look_up(target: F32, levels: F32) -> U8:
    """Nearest of arbitrary ascending levels."""
    middles = (levels[1:] + levels[:-1]) / 2
    return np.searchsorted(middles, target).astype(np.uint8)
