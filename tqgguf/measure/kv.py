"""The KV-cache simulation: what compressed keys and values do to what attention computes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tqgguf.errors import PlanError
from tqgguf.kernels.dtypes import F32
from tqgguf.measure.turboquant import unit_vectors
from tqgguf.turboquant import KVCache, TurboQuantMSE, TurboQuantProd
from tqgguf.turboquant.cache import softmax
from tqgguf.turboquant.rotations import RotationKind


@dataclass(frozen=True)
class CacheRow:
    """A simulated cache whose keys have `bits` bits a coordinate, the sketch's bit included."""

    bits: int
    keys: str  # "mse", or "prod": bits - 1 of codebook and one of sketch
    score_correlation: float
    correlation_theory: float
    score_bias: float  # slope of the scores on the true ones, minus 1
    output_rel_error: float
    n_bytes: int
    compression: float  # against float16
    compression_float32: float


def simulate_cache(
    *,
    bits: Sequence[int] = (2, 3, 4),
    dim: int = 128,
    length: int = 4096,
    queries: int = 64,
    seed: int = 0,
    rotation: RotationKind = "hadamard",
) -> list[CacheRow]:
    """Fill caches with random keys and values and attend to them with random queries.

    Keys, values and queries are random directions of length sqrt(dim), so that scaled scores have
    variance 1. For every number of bits: keys by MSE codes, and by Prod with one more bit (the
    "3+1" of the paper); values by MSE codes of as many bits.
    """
    if length < 2 or queries < 1:
        raise PlanError(f"length {length}, queries {queries}: at least 2 keys and 1 query")
    vectors = unit_vectors(2 * length + queries, dim, seed=seed) * np.float32(math.sqrt(dim))
    k, v, q = np.split(vectors, [length, 2 * length])
    caches = [
        KVCache(keys, TurboQuantMSE(dim, b, seed=seed + 1, rotation=rotation))
        for b in bits
        for keys in (
            TurboQuantMSE(dim, b, seed=seed, rotation=rotation),
            TurboQuantProd(dim, b + 1, seed=seed, rotation=rotation),
        )
    ]
    return [_simulate(cache, k, v, q) for cache in caches]


def _simulate(cache: KVCache, keys: F32, values: F32, queries: F32) -> CacheRow:
    cache.append(keys, values)
    scores, true = cache.attention_scores(queries), queries @ keys.T
    output = softmax(true / np.float32(math.sqrt(cache.keys.dim))) @ values
    error = np.linalg.norm(cache.attention_output(queries) - output) / np.linalg.norm(output)
    sketched = isinstance(cache.keys, TurboQuantProd)
    return CacheRow(
        bits=cache.keys.bits,
        keys="prod" if sketched else "mse",
        score_correlation=float(np.corrcoef(scores.ravel(), true.ravel())[0, 1]),
        correlation_theory=correlation_theory(cache.keys),
        score_bias=float(np.vdot(scores, true) / np.vdot(true, true)) - 1,
        output_rel_error=float(error),
        n_bytes=cache.nbytes,
        compression=cache.compression_ratio(bytes_per_number=2),
        compression_float32=cache.compression_ratio(bytes_per_number=4),
    )


def correlation_theory(keys: TurboQuantMSE | TurboQuantProd) -> float:
    """The correlation of estimated with true scores of independent random directions.

    MSE codes at distortion D: sqrt(1 - D). Prod adds noise of variance pi/2 D at one bit less:
    1 / sqrt(1 + pi/2 D).
    """
    if isinstance(keys, TurboQuantMSE):
        return math.sqrt(1 - keys.dim * keys.codebook.mse)
    return 1 / math.sqrt(1 + math.pi / 2 * keys.dim * keys.base.codebook.mse)
