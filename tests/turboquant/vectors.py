"""Random unit vectors for the tests."""

from functools import cache

import numpy as np


@cache
def unit_vectors(n, dim, seed):
    """(n, dim) float32, drawn once; not to be changed."""
    x = np.random.default_rng(seed).standard_normal((n, dim), dtype=np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    x.flags.writeable = False
    return x
