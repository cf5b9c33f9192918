"""Models in memory: arrays with names, and dense rotations to check the fast ones with."""

from pathlib import Path

import numpy as np

from tqgguf.kernels import hadamard
from tqgguf.models import Model, Tensor
from tqgguf.models.metadata import encode


def tensor(name, values):
    values = np.asarray(values, np.float32)
    flat = values.reshape(-1, values.shape[-1])
    return Tensor(name, values.shape, "F32", rows=lambda start, stop: flat[start:stop])


def model(arrays, *, architecture="unknown", metadata=None):
    tensors = {name: tensor(name, values) for name, values in arrays.items()}
    keys = {"general.architecture": encode(architecture)} | (metadata or {})
    return Model(Path("memory.gguf"), keys, tensors)


def residual_rotation(size, seed=0):
    """Q = diag(signs) H, dense, in float64, for a power of two."""
    signs = hadamard.signs(size, seed=seed).astype(np.float64)
    return signs[:, None] * hadamard.matrix(size).astype(np.float64)


def head_rotation(size, head):
    """blockdiag(H) with one block per head, dense."""
    return np.kron(np.eye(size // head), hadamard.matrix(head).astype(np.float64))
