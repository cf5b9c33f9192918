"""The lists of points that ggml's lattice types index, as gguf-py holds them."""

from typing import Any

import numpy as np
from gguf import quants

from tqgguf.kernels.dtypes import F32


def load_points(name: str, unit: float) -> F32:
    """The points of a type in units of d * (2 * step + 1): (m, k) float32.

    unit: what the formula divides gguf's integers by, a power of two, so nothing is rounded.
    """
    codec: Any = getattr(quants, name)
    codec.init_grid()
    grid: F32 = np.asarray(codec.grid, np.float32).reshape(codec.grid_shape)
    points: F32 = (grid / unit).astype(np.float32)
    points.setflags(write=False)
    return points
