"""Random rotations that make any vector look Gaussian: dense (the paper's), or fast Hadamard."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from tqgguf.errors import ShapeError
from tqgguf.kernels import hadamard
from tqgguf.kernels.dtypes import F32

RotationKind = Literal["hadamard", "dense"]


@dataclass(frozen=True)
class RandomRotation:
    """An orthogonal map on the last axis and its inverse, (..., dim) float32 -> the same shape."""

    forward: Callable[[F32], F32]
    inverse: Callable[[F32], F32]


def rotation(kind: RotationKind, dim: int, *, seed: int) -> RandomRotation:
    """The seeded random rotation of this kind in `dim` dimensions."""
    return _KINDS[kind](dim, seed)


def _dense(dim: int, seed: int) -> RandomRotation:
    """A rotation drawn uniformly from all: Q of the QR decomposition of a Gaussian matrix."""
    gaussian = np.random.default_rng(seed).standard_normal((dim, dim))
    q, r = np.linalg.qr(gaussian)
    # LAPACK's choice of signs is not random; those of diag(R) make Q uniform (Mezzadri 2007)
    matrix = (q * np.where(np.diag(r) < 0, -1, 1)).astype(np.float32)
    return RandomRotation(lambda x: np.matmul(x, matrix), lambda y: np.matmul(y, matrix.T))


def _hadamard(dim: int, seed: int) -> RandomRotation:
    """The map x -> x D1 H D2 H with random signs D1 and D2.

    One round would turn a vector with a single entry into entries of one magnitude, for which the
    Gaussian codebook is a poor one; the second round mixes those too.
    """
    if not hadamard.is_order(dim):
        near = 1 << (dim.bit_length() - 1)
        raise ShapeError(
            f"dim {dim}: the Hadamard rotation needs a power of two; "
            f"use {near} or {2 * near}, or the dense rotation"
        )
    first, second = hadamard.signs(2 * dim, seed=seed).reshape(2, dim).astype(np.float32)
    mix = partial(hadamard.apply, order=dim)
    return RandomRotation(
        lambda x: mix(mix(x * first) * second), lambda y: mix(mix(y) * second) * first
    )


_KINDS: dict[RotationKind, Callable[[int, int], RandomRotation]] = {
    "hadamard": _hadamard,
    "dense": _dense,
}
