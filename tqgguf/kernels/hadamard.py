"""Block-diagonal Hadamard rotations as Kronecker products of small matrix products.

Two families of symmetric orthogonal matrices, H = H^T = H^-1 with entries +-1/sqrt(order):

* ``sylvester``: Kronecker powers of [[1, 1], [1, -1]]/sqrt(2), order 2^k.
* ``regular``:   Kronecker powers of the 4 x 4 matrix with constant row sum 1, order 4^k, for which
  H 1 = 1. It keeps the mean of a vector, as LayerNorm needs.

A large order is never a dense matrix nor a butterfly of tiny steps: H_(ab) = H_a (x) H_b, so order
4096 is three products with 16 x 16 matrices.
"""

import math
from collections.abc import Iterator
from functools import cache
from typing import Literal, TypeVar

import numpy as np

from tqgguf.kernels.dtypes import F32, F64, I8

Kind = Literal["sylvester", "regular"]
KINDS: tuple[Kind, ...] = ("sylvester", "regular")
Float = TypeVar("Float", F32, F64)

_BASE: dict[Kind, F64] = {
    "sylvester": np.array([[1.0, 1.0], [1.0, -1.0]]) / math.sqrt(2),
    "regular": np.array([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]]) / 2.0,
}
_GRID_BITS = 38  # of an exact product's weights below their largest; 38 + 14 < 53
_PART = 1 << 16  # weights multiplied exactly at a time
_LARGEST_FACTOR = 16  # matrices multiplied with densely; more small products beat fewer large ones


def largest_order(size: int, kind: Kind = "sylvester") -> int:
    """The largest order of `kind` that divides an axis of `size` elements (at least 1)."""
    power_of_two = size & -size
    if kind == "regular" and power_of_two.bit_length() % 2 == 0:  # 2^odd is no power of 4
        return power_of_two // 2
    return power_of_two


def is_order(order: int, kind: Kind = "sylvester") -> bool:
    """Whether a Hadamard matrix of this kind has this order: 2^k, or 4^k for regular ones."""
    return order >= 1 and order == largest_order(order, kind)


@cache
def matrix(order: int, kind: Kind = "sylvester") -> F32:
    """The dense orthonormal matrix, (order, order) float32, read-only because it is shared."""
    if not is_order(order, kind):
        raise ValueError(f"no {kind} Hadamard matrix of order {order}")
    h: F64 = np.ones((1, 1))
    while len(h) < order:
        h = np.asarray(np.kron(h, _BASE[kind]), np.float64)
    dense = h.astype(np.float32)
    dense.setflags(write=False)
    return dense


def apply(x: Float, *, order: int, kind: Kind = "sylvester", axis: int = -1) -> Float:
    """Multiply blockdiag(H, ...) onto one axis; applying it twice gives x back.

    x: (..., size, ...) float32 or float64, size a multiple of order -> the same shape and dtype.
    On the last axis this is x @ blockdiag(H), on the first one blockdiag(H) @ x.
    """
    axis %= x.ndim
    if x.shape[axis] % order:
        raise ValueError(f"an axis of {x.shape[axis]} cannot be cut into blocks of {order}")
    out, inner = x, math.prod(x.shape[axis + 1 :])
    remaining = order
    for factor in _factors(order, kind):
        remaining //= factor
        out = _multiply(out, matrix(factor, kind).astype(x.dtype, copy=False), remaining * inner)
    return out.reshape(x.shape)


def apply_exact(x: F32, *, order: int, kind: Kind = "sylvester", axis: int = -1) -> F32:
    """`apply` with a single rounding: the same bits on every machine, BLAS and part of a matrix.

    The order of float32 sums depends on the BLAS kernel and on where a row lies in the product.
    Here weights are brought to a grid of 2^-38 of their block's largest (2^13 times finer than
    float32 stores the result), where sums of up to 2^14 terms are exact in float64 in any order.
    """
    axis %= x.ndim
    if x.shape[axis] % order:
        raise ValueError(f"an axis of {x.shape[axis]} cannot be cut into blocks of {order}")
    inner = math.prod(x.shape[axis + 1 :])
    blocks = x.reshape(-1, order, inner)
    out = np.empty_like(blocks)
    scale = 1 / math.sqrt(order)
    for part in _parts(*blocks.shape):
        turned = _multiply_exactly(blocks[part], order, kind)
        np.multiply(turned, scale, out=out[part], casting="same_kind")
    return out.reshape(x.shape)


def _parts(count: int, order: int, inner: int) -> Iterator[tuple[slice, slice, slice]]:
    """Cut (count, order, inner) into parts whose float64 copy stays in a core's cache."""
    width = min(inner, max(1, _PART // order))
    height = max(1, _PART // (order * width))
    for i in range(0, count, height):
        for j in range(0, inner, width):
            yield slice(i, i + height), slice(None), slice(j, j + width)


def _multiply_exactly(x: F32, order: int, kind: Kind) -> F64:
    """Multiply +-1 onto the middle axis: (n, order, inner) float32 -> the same shape, float64."""
    rounder = np.ldexp(1.5, np.frexp(_largest(x))[1] + (52 - _GRID_BITS))
    out: F64 = x.astype(np.float64)
    out += rounder
    out -= rounder
    remaining = order
    for factor in _factors(order, kind):
        remaining //= factor
        out = _multiply(out, _plus_minus(factor, kind), remaining * x.shape[2])
    return out.reshape(x.shape)


def _largest(x: F32) -> F32:
    """The largest magnitude along the middle axis: (n, order, m) -> (n, 1, m)."""
    largest: F32 = np.abs(x).max(axis=1, keepdims=True)
    return largest


@cache
def _plus_minus(order: int, kind: Kind) -> F64:
    """The matrix before it is normalised: entries +-1, exact."""
    return np.sign(matrix(order, kind)).astype(np.float64)


def signs(size: int, *, seed: int) -> I8:
    """Seeded random signs, (size,) int8 of +-1: the diagonal that makes the rotation random.

    PCG64's raw bits are fixed by NumPy's compatibility policy, so a seed means the same forever.
    """
    bits = np.random.PCG64(seed).random_raw((size + 63) // 64).astype("<u8").view(np.uint8)
    plus_minus = 1 - 2 * np.unpackbits(bits, count=size, bitorder="little").astype(np.int8)
    return plus_minus.astype(np.int8)


def _factors(order: int, kind: Kind) -> list[int]:
    """Split an order into Kronecker factors that are near-equal and at most _LARGEST_FACTOR."""
    base = len(_BASE[kind])
    powers = round(math.log(order, base))
    largest = round(math.log(_LARGEST_FACTOR, base))
    count = max(1, -(-powers // largest))
    return [base ** (powers // count + (i < powers % count)) for i in range(count)]


def _multiply(x: Float, h: Float, inner: int) -> Float:
    """Multiply h onto the middle axis of x seen as (outer, len(h), inner); h is symmetric."""
    if inner == 1:
        last: Float = x.reshape(-1, len(h)) @ h
        return last
    middle: Float = np.matmul(h, x.reshape(-1, len(h), inner))
    return middle
