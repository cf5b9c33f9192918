"""Balance channels: folds that need no rotation and cost nothing at run time.

A gated FFN computes down @ (act(gate @ x) * (up @ x)). A channel's row of `up` may be multiplied by
any s if its column of `down` is divided by it. No rotation reaches that axis, because an activation
stands on it, so an outlier channel of `down` would spoil the blocks it lies in. With
s = sqrt(|down column| / |up row|) both are alike, whatever factors the training left.

A norm's gain may be divided by any s if the columns of all matrices that read it are multiplied by
it. With s = 1 / |column| no column stands out of its block. Where the stream is rotated the gains
are folded into those columns anyway.

Where the energies E of the inputs are known, columns are not made alike: those that are given more
get more of their block's steps (activation-aware scaling, AWQ, arXiv 2306.00978). If all columns of
a block share a step in proportion to their mean square, sum_c E_c / s_c^2 . sum_c |s_c column_c|^2
is least for s = (E / |column|^2)^(1/4). Steps follow the largest weight, and errors may be weighed
by E as well; measured, s = E^(1/8) / |column|^(3/4) is best, half way between that and columns that
are alike (docs/decisions/0021). All three are the same network whatever factors the training left
between a gain and its columns.

This is cross-layer equalization (Nagel et al., arXiv 1906.04721, section 4.1), by energies instead
of ranges.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from tqgguf.kernels.dtypes import F32, F64
from tqgguf.models.model import Tensor

CHUNK = 1 << 18  # weights at a time: their float64 copy stays in a core's cache
SAMPLE = 256  # weights of a channel that are looked at: enough for a root of their energy
_MOST = 24.0  # exponent of a factor: no gain leaves float32's range by it
_INPUTS = 1 / 8  # exponent of the inputs' energies
_STREAM = -0.8  # exponent that tells a channel's energy in the stream from its readers' weights
_LOUDEST = 2  # times the median channel: most of what exceeds that is the same for every token
STEPS = 16  # to a factor of two: finer ones gain nothing
_MOST_STEPS = 127  # a byte holds them


def ffn_balance(up: Tensor, down: Tensor, inputs: F32 | None = None) -> F32:
    """The factors of `up`'s rows, those of `down`'s columns inverted: (n_expert * n_ff,) float32.

    up: (..., n_ff, n_in), down: (..., n_out, n_ff), inputs: energies of what down reads, (n_expert,
    n_ff). See `_by_inputs`, and without inputs `_powers_of_two`.
    """
    if inputs is not None:
        return power(-_by_inputs(_column_energy(down), inputs))
    return _powers_of_two(_column_energy(down), _row_energy(up), root=4)


def norm_balance(readers: Sequence[Tensor], inputs: F32 | None = None) -> F32:
    """The factors of the columns of all that read one norm: (n_in,) float32.

    readers: (..., n_out, n_in) each; they have equal say, whatever their size. inputs: energies of
    what they read, (n_mat, n_in). See `_by_inputs`, and without inputs `_powers_of_two`.
    """
    total = column_shares(readers)
    if inputs is not None:
        return power(_by_inputs(total, inputs.sum(axis=0, dtype=np.float64)[None]))
    return _powers_of_two(np.ones_like(total), total, root=2)


def expected_energies(gain: F32, readers: Sequence[Tensor]) -> F32:
    """What a norm of this gain is expected to give its readers: (n_in,) float32.

    gain: (n_in,), readers: (..., n_out, n_in) each. Training gives weight to channels that have
    little of the stream: E[x_c^2] goes with (g_c^2 |column_c|^2)^-0.8, however a factor is split
    between gain and columns (docs/decisions/0041).
    """
    squares = np.square(gain, dtype=np.float64)
    weight = squares * column_shares(readers)
    x = np.power(weight, _STREAM, out=np.zeros_like(weight), where=weight > 0)
    x = np.minimum(x, _LOUDEST * np.median(x))
    expected: F32 = (squares * x / max(float(x.mean()), 1e-300)).astype(np.float32)
    return expected


def power(steps: F32) -> F32:
    """The factors that exponents in steps stand for: float32."""
    return np.exp2(steps.astype(np.float64) / STEPS).astype(np.float32)


def column_shares(readers: Sequence[Tensor]) -> F64:
    """The energies of columns of all that read one norm, each matrix with equal say: (n_in,)."""
    total = np.zeros(readers[0].n_in)
    for reader in readers:
        energy = _column_energy(reader).reshape(-1, reader.n_in).sum(axis=0)
        total += energy / max(float(energy.sum()), 1e-300)
    return total


def _by_inputs(weights: F64, inputs: F32 | F64) -> F32:
    """The exponents of E^(1/8) / |column|^(3/4), in steps: (n_mat * n_in,) float32.

    weights: (n_mat * n_in,) energies of columns, inputs: (n_mat, n_in). Each matrix is taken
    relative to its geometric mean; a channel of which either is zero or no number stays.
    """
    energies, columns = inputs.astype(np.float64), weights.reshape(inputs.shape)
    alive = (columns > 0) & (energies > 0) & np.isfinite(energies)
    x, w = (np.log2(e, out=np.zeros_like(e), where=alive) for e in (energies, columns))
    exponents = _INPUTS * x - (0.5 - _INPUTS) * w
    mean = exponents.sum(axis=1, keepdims=True) / np.maximum(alive.sum(axis=1, keepdims=True), 1)
    steps = np.clip(np.rint(STEPS * (exponents - mean)), -_MOST_STEPS, _MOST_STEPS)
    return np.where(alive, steps, 0).reshape(-1).astype(np.float32)


def _powers_of_two(more: F64, less: F64, *, root: int) -> F32:
    """The root of more / less, as powers of two, which multiply without rounding.

    Only what a channel differs from the median channel counts; dead channels stay.
    """
    alive = (more > 0) & (less > 0)
    ratio = np.ones_like(more)
    np.divide(more, less, out=ratio, where=alive)
    if alive.any():
        ratio[alive] /= np.median(ratio[alive])
    exponents = np.clip(np.round(np.log2(ratio) / root), -_MOST, _MOST)
    return np.exp2(exponents).astype(np.float32)


def _row_energy(tensor: Tensor) -> F64:
    """Sum of squares of the first SAMPLE weights of each row: (n_rows,) float64."""
    width = SAMPLE if tensor.n_in % SAMPLE == 0 else tensor.n_in  # whole blocks of any type
    step = max(1, CHUNK // width)
    ranges = ((r, min(r + step, tensor.n_rows)) for r in range(0, tensor.n_rows, step))
    tiles = (tensor.read_tile(rows, (0, width)).astype(np.float64) for rows in ranges)
    return np.concatenate([np.einsum("ij,ij->i", x, x) for x in tiles])


def _column_energy(tensor: Tensor) -> F64:
    """Sum of squares of the first SAMPLE weights of each column: (n_expert * n_in,) float64."""
    n_out = tensor.shape[-2] if len(tensor.shape) > 1 else 1
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
