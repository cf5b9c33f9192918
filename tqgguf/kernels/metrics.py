"""How far an approximation is from its original, and how heavy the tails of weights are.

Sums accumulate in float64 over rows whose own sums are float32: exact to about 1e-6.
"""

import math

import numpy as np

from tqgguf.kernels.dtypes import F32, F64, I64


def sum_squares(x: F32) -> float:
    """The sum of x^2: (n, width) float32 -> float."""
    return float(np.sum(row_energies(x)))


def row_energies(x: F32) -> F64:
    """The sum of x^2 in every row: (n, width) float32 -> (n,) float64."""
    return np.asarray(np.einsum("nw,nw->n", x, x), np.float64)


def relative_mse(x: F32, approximation: F32) -> float:
    """The squared error as a fraction of the energy, sum (x - y)^2 / sum x^2; 0 if both are 0."""
    return ratio(*error_and_energy(x, approximation))


def error_and_energy(x: F32, approximation: F32) -> tuple[float, float]:
    """What `ratio` divides, which add up over parts: sum (x - y)^2 and sum x^2 of (n, width)."""
    return sum_squares(x - approximation), sum_squares(x)


def ratio(error: float, energy: float) -> float:
    """The relative error; 0 / 0 is 0: an all-zero tensor is kept exactly by every type."""
    return error / energy if energy else (math.inf if error else 0.0)


def cosine(product: float, energy: float, other_energy: float) -> float:
    """The cosine between two vectors, from their inner product and their energies."""
    scale = math.sqrt(energy) * math.sqrt(other_energy)
    return product / scale if scale else float(energy == other_energy)


def sqnr_db(rel_mse: float) -> float:
    """Signal to quantization noise ratio in dB: 10 log10(1 / relative MSE)."""
    return decibels(1 / rel_mse) if rel_mse else math.inf


def rate_distortion_gap_db(rel_mse: float, bits_per_weight: float) -> float:
    """How many dB an error lies above 4^-bits, the least that Gaussian weights allow (Shannon)."""
    return decibels(rel_mse) + bits_per_weight * decibels(4)


def decibels(power_ratio: float) -> float:
    """10 log10 of a ratio of powers."""
    return 10 * math.log10(power_ratio) if power_ratio else -math.inf


def power_sums(x: F32) -> F64:
    """The sums of x^0 to x^4: any shape float32 -> (5,) float64; they add up over parts."""
    wide = x.astype(np.float64).ravel()
    squares = wide * wide
    return np.array(
        [wide.size, wide.sum(), squares.sum(), np.vdot(squares, wide), np.vdot(squares, squares)]
    )


def kurtosis_of(sums: F64) -> float:
    """E (x - mean)^4 / variance^2 from `power_sums`: 3 for Gaussian weights, more for heavy tails.

    Constants have none and give nan.
    """
    mean, m2, m3, m4 = (float(s) for s in sums[1:] / sums[0])
    variance = m2 - mean**2
    if variance <= 1e-12 * m2:
        return math.nan
    return (m4 - 4 * mean * m3 + 6 * mean**2 * m2 - 3 * mean**4) / variance**2


def kurtosis(x: F32) -> float:
    """The kurtosis of all weights of an array of any shape: 3 for Gaussian ones."""
    return kurtosis_of(power_sums(x))


def histogram(x: F32, *, limit: float, bins: int) -> I64:
    """Counts in equal bins over [-limit, limit], the outer ones open: float32 -> (bins,) int64."""
    places = (x.ravel() + np.float32(limit)) * np.float32(bins / (2 * limit))
    return np.bincount(np.clip(places, 0, bins - 1).astype(np.int64), minlength=bins)


def ratio_standard_error(errors: F64, energies: F64, *, population: int) -> float:
    """Relative standard error of sum(errors) / sum(energies) from a sample without replacement.

    errors, energies: (n,) float64, one entry per sampled part of `population` parts. Cochran,
    Sampling Techniques, 6.4. Infinite for a single part of several.
    """
    n = len(errors)
    if n >= population or not errors.any():
        return 0.0
    if n < 2:
        return math.inf
    residuals = errors - errors.sum() / energies.sum() * energies
    spread = math.sqrt(float(np.sum(residuals**2)) * n / (n - 1) * (1 - n / population))
    return spread / float(errors.sum())


def heavy_tailed(n_rows: int, n_in: int, *, seed: int | np.random.SeedSequence) -> F32:
    """Synthetic weights: a Gaussian bulk of 0.02, and about 0.5 % outliers of +-0.3..0.7.

    -> (n_rows, n_in) float32. The outliers' places are drawn with replacement over the matrix.
    """
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((n_rows, n_in), dtype=np.float32)
    weights *= np.float32(0.02)
    count = n_rows * max(1, n_in // 200)
    places = rng.integers(0, weights.size, count)
    sizes = rng.uniform(0.3, 0.7, count) * rng.choice((-1.0, 1.0), count)
    weights.reshape(-1)[places] = sizes
    return weights
