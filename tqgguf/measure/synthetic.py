"""The synthetic benchmark: heavy-tailed weights in a plain block format and in the GGUF types.

Every format appears twice, as it is and (TQ-) after a Hadamard rotation in blocks of 128. The plain
format Qn is symmetric: 32 weights share one float32 scale, max|w| / (2^(n-1) - 1), hence n + 1 bits
per weight.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tqgguf.formats import FORMATS, dequantize, find_format, quantize
from tqgguf.kernels import hadamard, metrics
from tqgguf.kernels.dtypes import F32, I64
from tqgguf.machine.threads import run_all

SIZE = 4096  # rows, and weights in a row
GGUF_ROWS = 1024  # rows measured in GGUF types: 4.2 million weights, good to 0.7 %
TYPES = tuple(t for t in ("Q4_0", "Q4_K", "IQ4_XS", "Q3_K", "Q2_K") if t in FORMATS)
BLOCK, ROTATION_BLOCK = 32, 128
REFERENCE_BPW = 4.625  # Q4_K_M, whose decode speed the hint is relative to
_CHUNK = 64  # rows generated and measured at a time


@dataclass(frozen=True)
class SyntheticRow:
    """One format's error; baseline_mse is that of the unrotated 4-bit format of the same family."""

    format: str
    rotated: bool
    bpw: float
    mse: float
    rel_mse: float
    max_abs_err: float
    baseline_mse: float
    gain: float | None  # MSE without rotation / MSE with it; None for the control

    @property
    def verdict(self) -> str:
        """Whether the error is at most the baseline's."""
        if self.mse <= self.baseline_mse:
            return "matches baseline-Q4 quality"
        return "exceeds baseline-Q4 error"

    @property
    def speed_hint(self) -> float:
        """Decode speed relative to Q4_K_M if memory bandwidth alone decided."""
        return REFERENCE_BPW / self.bpw


@dataclass
class _Measured:
    """Sums over chunks of rows."""

    error: float = 0.0
    energy: float = 0.0
    largest: float = 0.0
    size: int = 0

    def add(self, x: F32, error: F32) -> None:
        """Count the rows x and their error, both (n, width) float32."""
        self.error += metrics.sum_squares(error)
        self.energy += metrics.sum_squares(x)
        self.largest = max(self.largest, float(np.abs(error).max()))
        self.size += x.size


def measure_synthetic(
    weights: F32,
    *,
    types: Sequence[str] = TYPES,
    gguf_rows: int = GGUF_ROWS,
    threads: int | None = None,
) -> list[SyntheticRow]:
    """Measure the plain format on all weights and each GGUF type on the first gguf_rows rows.

    weights: (n, n_in) float32, n_in a multiple of 256. Raises PlanError for an unknown type.
    """
    names = [find_format(name).name for name in types]
    return _plain_rows(weights, threads) + _gguf_rows(weights[:gguf_rows], names, threads)


def histograms(weights: F32, *, limit: float, bins: int) -> tuple[I64, I64]:
    """Counts of weights / standard deviation, as they are and rotated, two (bins,) int64."""
    sample = weights[:GGUF_ROWS]
    scaled = sample / np.float32(sample.std(dtype=np.float64))
    turned = hadamard.apply(scaled, order=ROTATION_BLOCK)
    return (
        metrics.histogram(scaled, limit=limit, bins=bins),
        metrics.histogram(turned, limit=limit, bins=bins),
    )


def make_weights(*, seed: int, threads: int | None = None) -> F32:
    """The benchmark's weights, (4096, 4096) float32."""
    weights = np.empty((SIZE, SIZE), np.float32)
    seeds = np.random.SeedSequence(seed).spawn(SIZE // _CHUNK)

    def fill(chunk: int) -> None:
        weights[chunk * _CHUNK : (chunk + 1) * _CHUNK] = metrics.heavy_tailed(
            _CHUNK, SIZE, seed=seeds[chunk]
        )

    run_all(fill, list(range(len(seeds))), threads=threads)
    return weights


def plain_errors(x: F32, bits: int) -> F32:
    """Rounding errors of the plain format: (n, n_in) float32, n_in a multiple of 32 -> the same."""
    groups = x.reshape(-1, BLOCK)
    scale = np.abs(groups).max(axis=1, keepdims=True) / np.float32((1 << bits - 1) - 1)
    scale[scale == 0] = 1
    rounded = np.rint(groups / scale)
    rounded *= scale
    rounded -= groups
    return np.asarray(rounded.reshape(x.shape))


def _plain_rows(weights: F32, threads: int | None) -> list[SyntheticRow]:
    cases = [(bits, rotated) for bits in (4, 3, 2) for rotated in (False, True)]
    parts: dict[int, dict[tuple[int, bool], _Measured]] = {}

    def chunk(start: int) -> None:
        parts[start] = _plain_chunk(weights[start : start + _CHUNK], cases)

    run_all(chunk, list(range(0, len(weights), _CHUNK)), threads=threads)
    totals = {case: _sum([parts[start][case] for start in sorted(parts)]) for case in cases}
    baseline = totals[4, False]
    return [
        _row(f"Q{bits}", rotated, bits + 32 / BLOCK, measured, totals[bits, False], baseline)
        for (bits, rotated), measured in totals.items()
    ]


def _plain_chunk(x: F32, cases: list[tuple[int, bool]]) -> dict[tuple[int, bool], _Measured]:
    """All cases on a few rows; errors are turned back, so that the largest is a weight's own."""
    bases = {False: x, True: hadamard.apply(x, order=ROTATION_BLOCK)}
    measured = {case: _Measured() for case in cases}
    for (bits, rotated), sums in measured.items():
        error = plain_errors(bases[rotated], bits)
        sums.add(x, hadamard.apply(error, order=ROTATION_BLOCK) if rotated else error)
    return measured


def _sum(parts: list[_Measured]) -> _Measured:
    return _Measured(
        sum(p.error for p in parts),
        sum(p.energy for p in parts),
        max(p.largest for p in parts),
        sum(p.size for p in parts),
    )


def _gguf_rows(x: F32, names: Sequence[str], threads: int | None) -> list[SyntheticRow]:
    turned = hadamard.apply(x, order=ROTATION_BLOCK)
    measured: dict[tuple[str, bool], _Measured] = {}
    for name in dict.fromkeys((*names, "Q4_0")):  # Q4_0 is the family's 4-bit baseline
        for rotated, basis in ((False, x), (True, turned)):
            error = round_trip(basis, name, threads=threads) - basis
            sums = measured[name, rotated] = _Measured()
            sums.add(x, hadamard.apply(error, order=ROTATION_BLOCK) if rotated else error)
    return [
        _row(
            name,
            rotated,
            FORMATS[name].bits_per_weight,
            measured[name, rotated],
            measured[name, False],
            measured["Q4_0", False],
        )
        for name in names
        for rotated in (False, True)
    ]


def round_trip(x: F32, name: str, *, threads: int | None = None) -> F32:
    """What a reader sees of x after a GGUF type: (n, n_in) float32 -> the same shape."""
    return dequantize(quantize(x, name, threads=threads), name, x.shape[1])


def _row(
    name: str,
    rotated: bool,
    bpw: float,
    measured: _Measured,
    control: _Measured,
    baseline: _Measured,
) -> SyntheticRow:
    return SyntheticRow(
        format=f"TQ-{name}" if rotated else name,
        rotated=rotated,
        bpw=bpw,
        mse=measured.error / measured.size,
        rel_mse=metrics.ratio(measured.error, measured.energy),
        max_abs_err=measured.largest,
        baseline_mse=baseline.error / baseline.size,
        gain=control.error / measured.error if rotated else None,
    )
