"""Balance the FFN's channels: a fold that needs no rotation and costs nothing at run time.

A gated FFN computes down @ (act(gate @ x) * (up @ x)). A channel's row of `up` may be multiplied by
any s if its column of `down` is divided by it. No rotation reaches that axis, because an activation
stands on it, so an outlier channel of `down` would spoil the blocks it lies in. With
s = sqrt(|down column| / |up row|) both are alike, whatever factors the training left.
"""

from collections.abc import Iterator

import numpy as np

from tqgguf.kernels.dtypes import F32, F64
from tqgguf.models.model import Tensor

CHUNK = 1 << 18  # weights at a time: their float64 copy stays in a core's cache
SAMPLE = 256  # weights of a channel that are looked at: enough for the fourth root of an energy


def ffn_balance(up: Tensor, down: Tensor) -> F32:
    """The factors of `up`'s rows: (n_expert * n_ff,) float32, all of them powers of two.

    up: (..., n_ff, n_in), down: (..., n_out, n_ff). Powers of two multiply without rounding; only
    what a channel differs from the median channel counts, dead channels stay.
    """
    rows, columns = _row_energy(up), _column_energy(down)
    alive = (rows > 0) & (columns > 0)
    if not alive.any():
        return np.ones(len(rows), np.float32)
    ratio = np.ones_like(rows)
    np.divide(columns, rows, out=ratio, where=alive)
    ratio[alive] /= np.median(ratio[alive])
    return np.exp2(np.round(np.log2(ratio) / 4)).astype(np.float32)  # energies: fourth root


def _row_energy(tensor: Tensor) -> F64:
    """Sum of squares of the first SAMPLE weights of each row: (n_rows,) float64."""
    width = SAMPLE if tensor.n_in % SAMPLE == 0 else tensor.n_in  # whole blocks of any type
    step = max(1, CHUNK // width)
    ranges = ((r, min(r + step, tensor.n_rows)) for r in range(0, tensor.n_rows, step))
    tiles = (tensor.read_tile(rows, (0, width)).astype(np.float64) for rows in ranges)
    return np.concatenate([np.einsum("ij,ij->i", x, x) for x in tiles])


def _column_energy(tensor: Tensor) -> F64:
    """Sum of squares of the first SAMPLE weights of each column: (n_expert * n_in,) float64."""
    n_out = tensor.shape[-2]
    starts = range(0, tensor.n_rows, n_out)
    tiles = (tensor.rows(r, r + min(n_out, SAMPLE)).astype(np.float64) for r in starts)
    return np.concatenate([np.einsum("ij,ij->j", x, x) for x in tiles])


def chunks(tensor: Tensor) -> Iterator[tuple[int, F64]]:
    """Ranges of rows of one matrix: the first row's index and the rows.

    In float64, where sums in another order are off by 1e-16 at most: the same factors everywhere.
    """
    n_out, n_in = tensor.shape[-2:]
    step = max(1, CHUNK // n_in)
    for begin in range(0, tensor.n_rows, n_out):
        for first in range(begin, begin + n_out, step):
            yield first, tensor.rows(first, min(first + step, begin + n_out)).astype(np.float64)
