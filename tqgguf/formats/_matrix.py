"""Rows rounded with error feedback, wherever their arrays are."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from tqgguf.formats._format import Format
from tqgguf.formats._scalar import ScalarFormat
from tqgguf.formats._tensor import dequantize_rows
from tqgguf.kernels import feedback
from tqgguf.kernels.arrays import is_numpy, moved, namespace, to_numpy
from tqgguf.kernels.dtypes import F32, U8, Blocks
from tqgguf.kernels.feedback import Moments
from tqgguf.kernels.protocols import Runner
from tqgguf.machine.threads import map_in_order

_COLUMNS = 512  # whose scales a thread fits at a time
Fit = Callable[[F32, F32 | None], Blocks]


def round_matrix(
    fmt: Format, rows: F32, moments: Moments, *, sweeps: int, run: Runner
) -> tuple[U8, F32]:
    """See `tqgguf.formats.round_rows`."""
    if is_numpy(rows):
        return _rounded(fmt, rows, moments, sweeps)
    if not isinstance(fmt, ScalarFormat):
        return _rounded_here(fmt, rows, moments, sweeps)
    xp = namespace(rows)
    fmt = replace(fmt, fit=partial(_fit_on_threads, fmt.fit))
    w = xp.asarray(rows.T, copy=True)
    each = partial(map_in_order, threads=None)
    found = feedback.round_matrix(w, moments, fmt, sweeps=sweeps, run=run, each=each)
    blocks, values = found
    return _bytes(blocks), values.T


def _rounded(fmt: Format, rows: F32, moments: Moments, sweeps: int) -> tuple[U8, F32]:
    blocks = fmt.encode_matrix(np.ascontiguousarray(rows.T), moments, sweeps=sweeps)
    data = _bytes(blocks)
    return data, dequantize_rows(fmt, data, rows.shape[1])


def _rounded_here(fmt: Format, rows: F32, moments: Moments, sweeps: int) -> tuple[U8, F32]:
    """Rows of a device rounded by this machine's threads: codes of lattices are looked up."""
    mine, here = to_numpy(rows), moments.to_numpy()
    parts = [mine[at : at + _COLUMNS] for at in range(0, len(mine), _COLUMNS)]
    work = partial(_rounded, fmt, moments=here, sweeps=sweeps)
    data, values = zip(*map_in_order(work, parts, threads=None), strict=True)
    return np.concatenate(data), moved(np.concatenate(values), rows)


def _fit_on_threads(fit: Fit, x: F32, importance: F32 | None) -> Blocks:
    """The same blocks, some columns a thread: (size, n), two -> (n,)."""

    def work(start: int) -> Blocks:
        here = slice(start, start + _COLUMNS)
        return fit(x[:, here], None if importance is None else importance[:, here])

    starts = range(0, x.shape[1], _COLUMNS)
    return np.concatenate(list(map_in_order(work, starts, threads=None)))


def _bytes(blocks: Blocks) -> U8:
    """Blocks, (n_in / block size, n_rows) -> (n_rows, n_bytes)."""
    return np.ascontiguousarray(blocks.T).view(np.uint8).reshape(blocks.shape[1], -1)
