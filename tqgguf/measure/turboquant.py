"""TurboQuant's own quantizers on random unit vectors, against the paper and the bounds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tqgguf.errors import PlanError
from tqgguf.kernels.dtypes import F32, F64
from tqgguf.turboquant import TurboQuantMSE, TurboQuantProd
from tqgguf.turboquant.quantizers import SketchKind
from tqgguf.turboquant.rotations import RotationKind

# arXiv 2504.19874, theorems 1 and 2: D_mse, and dim x D_prod, for 1 to 4 bits
PAPER_MSE = {1: 0.36, 2: 0.117, 3: 0.03, 4: 0.009}
PAPER_PROD = {1: 1.57, 2: 0.56, 3: 0.18, 4: 0.047}
ROTATIONS: tuple[RotationKind, ...] = ("hadamard", "dense")
SKETCHES: tuple[SketchKind, ...] = ("gaussian", "rademacher")
_CHUNK = 8192  # vectors compressed at a time


@dataclass(frozen=True)
class DistortionRow:
    """Measured distortions at one number of bits; the paper gives values up to 4 bits.

    d_mse: E |x - x'|^2, d_prod: E (<y, x> - estimate)^2 for unit vectors. bias: the mean error of
    the estimate signed by the true product, so that shrinking it counts. bound: 4^-bits, below
    which no quantizer's d_mse can lie; that of d_prod is bound / dim.
    """

    bits: int
    dim: int
    vectors: int
    d_mse: float
    d_mse_theory: float
    d_mse_paper: float | None
    d_prod: float
    d_prod_theory: float
    d_prod_paper: float | None
    bound: float
    bias: float
    bias_stderr: float
    bias_mse: float  # of the MSE quantizer with the same bits, which shrinks products
    bits_per_value: float
    bits_per_value_prod: float


def distortions(
    *,
    bits: Sequence[int] = (1, 2, 3, 4),
    dim: int = 256,
    vectors: int = 20_000,
    seed: int = 0,
    rotation: RotationKind = "hadamard",
    sketch: SketchKind = "gaussian",
) -> list[DistortionRow]:
    """Measure both quantizers on random unit vectors, one query for each.

    Raises PlanError for fewer than 2 vectors, ShapeError for bits or a dim that does not fit.
    """
    if vectors < 2:
        raise PlanError(f"{vectors} vectors: at least 2 are needed to measure a mean and its error")
    quantizers = [
        (
            TurboQuantMSE(dim, b, seed=seed, rotation=rotation),
            TurboQuantProd(dim, b, seed=seed, rotation=rotation, sketch=sketch),
        )
        for b in bits
    ]
    x, y = unit_vectors(2 * vectors, dim, seed=seed).reshape(2, vectors, dim)
    return [_distortion(mse, prod, x, y) for mse, prod in quantizers]


def unit_vectors(n: int, dim: int, *, seed: int) -> F32:
    """Uniformly random unit vectors, (n, dim) float32."""
    x = np.random.default_rng((seed, dim)).standard_normal((n, dim), dtype=np.float32)
    return np.asarray(x / np.sqrt(np.einsum("nd,nd->n", x, x))[:, None])


def _distortion(mse: TurboQuantMSE, prod: TurboQuantProd, x: F32, y: F32) -> DistortionRow:
    bits, dim, vectors = mse.bits, mse.dim, len(x)
    error, mse_errors, _ = _errors(mse, x, y)
    _, prod_errors, squares = _errors(prod, x, y)
    paper = PAPER_PROD.get(bits)
    return DistortionRow(
        bits=bits,
        dim=dim,
        vectors=vectors,
        d_mse=error,
        d_mse_theory=dim * mse.codebook.mse,
        d_mse_paper=PAPER_MSE.get(bits),
        d_prod=squares,
        d_prod_theory=math.pi / 2 * prod.base.codebook.mse,
        d_prod_paper=None if paper is None else paper / dim,
        bound=4.0**-bits,
        bias=float(prod_errors.mean()),
        bias_stderr=float(prod_errors.std()) / math.sqrt(vectors),
        bias_mse=float(mse_errors.mean()),
        bits_per_value=8 * mse.bytes_per_vector / dim,
        bits_per_value_prod=8 * prod.bytes_per_vector / dim,
    )


def _errors(quantizer: TurboQuantMSE | TurboQuantProd, x: F32, y: F32) -> tuple[float, F64, float]:
    """Mean |x - x'|^2, the signed errors of <y, x> for every pair, and their mean square."""
    distance, errors = 0.0, []
    for start in range(0, len(x), _CHUNK):
        part, queries = x[start : start + _CHUNK], y[start : start + _CHUNK]
        difference = quantizer.decompress(quantizer.compress(part)) - part
        distance += float(np.sum(difference**2, dtype=np.float64))
        true = np.einsum("nd,nd->n", queries, part)
        errors.append(np.einsum("nd,nd->n", queries, difference) * np.sign(true))
    signed = np.concatenate(errors).astype(np.float64)
    return distance / len(x), signed, float(np.mean(signed**2))
