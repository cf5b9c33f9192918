"""TurboQuant's two vector quantizers (arXiv 2504.19874, algorithms 1 and 2), batched.

Both rotate a vector at random, so that every coordinate follows the law of a random unit vector's,
and quantize the coordinates one by one with the Lloyd-Max codebook for that law.

* `TurboQuantMSE` spends all bits on the codebook: the least squared error, but inner products
  estimated from it shrink by the factor 1 - D_mse.
* `TurboQuantProd` spends one bit less on it and the last bit on the signs of a random projection
  of the residual (QJL, arXiv 2406.03482). That makes inner products unbiased, and costs variance:
  pi/2 times the squared error at bits - 1, four to six times that of a codebook with all the bits.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from tqgguf.errors import ShapeError, WeightError
from tqgguf.kernels import bitplanes
from tqgguf.kernels.dtypes import F32, U8
from tqgguf.turboquant.codebooks import Codebook, sphere_codebook
from tqgguf.turboquant.rotations import RandomRotation, RotationKind, rotation

SketchKind = Literal["gaussian", "rademacher"]
_SKETCH_STREAM = 1  # keeps the sketch's random numbers apart from the rotation's


@dataclass(frozen=True)
class Compressed:
    """Compressed vectors as they would lie in memory.

    codes: (n, bytes) uint8 packed, norms: (n,) float32; with a residual sketch also
    signs: (n, bytes) uint8 packed and residual_norms: (n,) float32, relative to the norms.
    """

    codes: U8
    norms: F32
    signs: U8 | None = None
    residual_norms: F32 | None = None

    def __len__(self) -> int:
        return len(self.norms)

    @property
    def nbytes(self) -> int:
        """All the bytes that are stored."""
        parts = (self.codes, self.norms, self.signs, self.residual_norms)
        return sum(part.nbytes for part in parts if part is not None)

    @classmethod
    def concatenate(cls, parts: "list[Compressed]") -> "Compressed":
        """All the vectors of several parts made by one quantizer, in order."""
        signs = [p.signs for p in parts if p.signs is not None]
        residual_norms = [p.residual_norms for p in parts if p.residual_norms is not None]
        return cls(
            np.concatenate([p.codes for p in parts]),
            np.concatenate([p.norms for p in parts]),
            np.concatenate(signs) if signs else None,
            np.concatenate(residual_norms) if residual_norms else None,
        )


@dataclass(frozen=True)
class TurboQuantMSE:
    """Algorithm 1: norm, random rotation, Lloyd-Max codes of 0 to 8 bits per coordinate."""

    dim: int
    bits: int
    seed: int = 0
    rotation: RotationKind = "hadamard"

    def __post_init__(self) -> None:
        _ = self.codebook, self.rotate  # bits or a dimension that do not fit fail here

    @cached_property
    def codebook(self) -> Codebook:
        """The codebook for a coordinate of a random unit vector."""
        return sphere_codebook(self.bits, self.dim)

    @cached_property
    def rotate(self) -> RandomRotation:
        """The seeded random rotation."""
        return rotation(self.rotation, self.dim, seed=self.seed)

    @property
    def bytes_per_vector(self) -> int:
        """Bytes of the codes and the float32 norm."""
        return bitplanes.packed_bytes(self.dim, bits=self.bits) + 4

    def compression_ratio(self, bytes_per_number: int = 4) -> float:
        """How many times smaller than plain numbers: 4 bytes float32, 2 bytes float16."""
        return self.dim * bytes_per_number / self.bytes_per_vector

    def compress(self, x: F32) -> Compressed:
        """x: (n, dim) or (dim,) float32, finite -> n compressed vectors."""
        units, norms = _normalize(x, self.dim)
        codes = self.codebook.encode(self.rotate.forward(units))
        return Compressed(bitplanes.pack(codes, bits=self.bits), norms)

    def decompress(self, compressed: Compressed) -> F32:
        """The vectors the codes stand for, (n, dim) float32."""
        return self.rotate.inverse(self.rotated(compressed))

    def rotated(self, compressed: Compressed) -> F32:
        """The vectors the codes stand for, still rotated, (n, dim) float32."""
        codes = bitplanes.unpack(compressed.codes, bits=self.bits, width=self.dim)
        return self.codebook.decode(codes) * compressed.norms[:, None]

    def inner_product(self, queries: F32, compressed: Compressed) -> F32:
        """Estimate <query, vector>, shrunk by 1 - D_mse: (m, dim) or (dim,) -> (m, n) or (n,)."""
        return self.rotate.forward(_checked(queries, self.dim)) @ self.rotated(compressed).T


@dataclass(frozen=True)
class TurboQuantProd:
    """Algorithm 2: 0 to 8 bits of codebook, then one bit of sketch: `bits` from 1 to 9 in all.

    The residual r of the unit vector x is kept as |r| and sign(S r), S of shape (dim, dim) with
    independent N(0, 1) or +-1 entries; sqrt(pi/2)/dim |r| <S y, sign(S r)> estimates <y, r>. Its
    expectation over a Gaussian S is exact; over signs, up to a term that vanishes as 1/dim.
    """

    dim: int
    bits: int
    seed: int = 0
    rotation: RotationKind = "hadamard"
    sketch: SketchKind = "gaussian"

    def __post_init__(self) -> None:
        if self.bits < 1:
            raise ShapeError(f"bits {self.bits}: the sketch alone takes 1 bit")
        _ = self.base, self.projection

    @cached_property
    def base(self) -> TurboQuantMSE:
        """The quantizer of the first bits - 1 bits."""
        return TurboQuantMSE(self.dim, self.bits - 1, self.seed, self.rotation)

    @cached_property
    def projection(self) -> F32:
        """S transposed, (dim, dim) float32; it acts on rotated vectors."""
        rng = np.random.default_rng((self.seed, _SKETCH_STREAM))
        return _SKETCHES[self.sketch](rng, self.dim)

    @property
    def bytes_per_vector(self) -> int:
        """Bytes of codes, signs and two float32 norms."""
        return self.base.bytes_per_vector + bitplanes.packed_bytes(self.dim, bits=1) + 4

    def compression_ratio(self, bytes_per_number: int = 4) -> float:
        """How many times smaller than plain numbers: 4 bytes float32, 2 bytes float16."""
        return self.dim * bytes_per_number / self.bytes_per_vector

    def compress(self, x: F32) -> Compressed:
        """x: (n, dim) or (dim,) float32, finite -> n compressed vectors."""
        units, norms = _normalize(x, self.dim)
        rotated = self.base.rotate.forward(units)
        codes = self.base.codebook.encode(rotated)
        residual = rotated - self.base.codebook.decode(codes)
        positive = (residual @ self.projection > 0).view(np.uint8)
        return Compressed(
            bitplanes.pack(codes, bits=self.base.bits),
            norms,
            bitplanes.pack(positive, bits=1),
            np.linalg.norm(residual, axis=1),
        )

    def decompress(self, compressed: Compressed) -> F32:
        """The vectors whose inner products `inner_product` returns, (n, dim) float32.

        They are unbiased, not close: their squared error is pi/2 times that of `base`.
        """
        sketch, scales = self._sketch(compressed)
        residual = (sketch @ self.projection.T) * scales[:, None]
        return self.base.rotate.inverse(self.base.rotated(compressed) + residual)

    def inner_product(self, queries: F32, compressed: Compressed) -> F32:
        """Estimate <query, vector> without bias: (m, dim) or (dim,) float32 -> (m, n) or (n,)."""
        rotated = self.base.rotate.forward(_checked(queries, self.dim))
        sketch, scales = self._sketch(compressed)
        # the query keeps its signs and sizes: S y, not |S y|
        correction = (rotated @ self.projection) @ sketch.T * scales
        return np.asarray(rotated @ self.base.rotated(compressed).T + correction)

    def _sketch(self, compressed: Compressed) -> tuple[F32, F32]:
        """The signs as +-1, (n, dim) float32, and their scales sqrt(pi/2)/dim |r| |x|, (n,)."""
        if compressed.signs is None or compressed.residual_norms is None:
            raise ValueError("these vectors were compressed without a sketch of their residual")
        positive = bitplanes.unpack(compressed.signs, bits=1, width=self.dim)
        scales = compressed.residual_norms * compressed.norms * (math.sqrt(math.pi / 2) / self.dim)
        return positive.astype(np.float32) * 2 - 1, scales


def _normalize(x: F32, dim: int) -> tuple[F32, F32]:
    """Unit vectors (n, dim) and norms (n,); a zero vector stays zero."""
    vectors = _checked(x, dim).reshape(-1, dim)
    norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    if not np.isfinite(norms).all():
        bad = int(np.count_nonzero(~np.isfinite(norms)))
        raise WeightError(
            f"{bad} of {len(norms)} vectors have NaN, infinite or overflowing entries"
        )
    divisors = np.where(norms > 0, norms, np.float32(1))
    return np.asarray(vectors / divisors[:, None]), norms


def _checked(x: F32, dim: int) -> F32:
    """The same values as float32, if the last axis has `dim` entries."""
    if x.ndim == 0 or x.shape[-1] != dim:
        raise ShapeError(f"vectors of shape {x.shape}: expected (n, {dim}) or ({dim},)")
    return np.asarray(x, np.float32)


def _gaussian(rng: np.random.Generator, dim: int) -> F32:
    return rng.standard_normal((dim, dim), dtype=np.float32)


def _rademacher(rng: np.random.Generator, dim: int) -> F32:
    return (1 - 2 * rng.integers(0, 2, (dim, dim))).astype(np.float32)


_SKETCHES: dict[SketchKind, Callable[[np.random.Generator, int], F32]] = {
    "gaussian": _gaussian,
    "rademacher": _rademacher,
}
