"""The float32 scale of a whole matrix, in a tensor of its own beside NVFP4's blocks.

Powers of two, so that dividing by one is exact; the blocks' scales do the rest.
"""

import numpy as np

from tqgguf.kernels.dtypes import F32
from tqgguf.models import Tensor

# A block's scale may be 448 at most and is a fraction of three bits from 2^-6 on. That of the
# largest weight is to be 56 to 112, so error feedback may move weights to four times that.
_PEAK = np.float32(6 * 112)
_READ = 1 << 22  # weights at a time


def scales_of(tensor: Tensor) -> F32:
    """What to divide each of the matrices of a tensor by: (n_mat,) float32.

    tensor: in the basis in which it is stored.
    """
    n_mat = int(np.prod(tensor.shape[:-2]))
    n_out, step = tensor.n_rows // n_mat, max(1, _READ // tensor.n_in)
    peaks = np.zeros(n_mat, np.float32)
    for i in range(n_mat):
        for at in range(i * n_out, (i + 1) * n_out, step):
            rows = tensor.rows(at, min(at + step, (i + 1) * n_out))
            peaks[i] = max(peaks[i], rows.max(), -rows.min())
    _, exponent = np.frexp(peaks / _PEAK)
    return np.where(peaks > 0, np.ldexp(np.float32(1), exponent), np.float32(1))


def per_row(scales: F32, begin: int, end: int, n_rows: int) -> F32:
    """The scale of each of some rows of all matrices' n_rows: (end - begin, 1) float32."""
    return scales[np.arange(begin, end) // (n_rows // len(scales))][:, None]
