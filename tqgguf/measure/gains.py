"""What rotation gained: errors with it and without, of one matrix and over all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan
from statistics import median

import numpy as np

from tqgguf.kernels import metrics
from tqgguf.kernels.dtypes import I64
from tqgguf.models.roles import layer_prefix
from tqgguf.planning.allocation import known_sensitivity

WORTHWHILE = 0.01  # a total gain within 1 % of 1 is called no difference


class _BothErrors:
    """What follows from an error of the weights without rotation and one with it."""

    bpw: float
    rel_mse: float
    rel_mse_rotated: float

    @property
    def gain(self) -> float:
        """Relative error of the weights without rotation over that with it."""
        return metrics.ratio(self.rel_mse, self.rel_mse_rotated) or 1.0

    @property
    def gap_db(self) -> float:
        """Distance from the rate-distortion limit of Gaussian weights, without rotation."""
        return metrics.rate_distortion_gap_db(self.rel_mse, self.bpw)

    @property
    def gap_db_rotated(self) -> float:
        """The same with rotation."""
        return metrics.rate_distortion_gap_db(self.rel_mse_rotated, self.bpw)


@dataclass(frozen=True)
class TypeErrors(_BothErrors):
    """One type's errors on one matrix, without rotation and with it."""

    bpw: float
    mse: float
    mse_rotated: float
    rel_mse: float
    rel_mse_rotated: float
    standard_error: float  # relative, of the least certain of them
    rel_output: float | None = None  # of the outputs, where the inputs' energies are known
    rel_output_rotated: float | None = None


@dataclass(frozen=True)
class MatrixReport:
    """One matrix: its tails and its errors; unfit names the types its rows do not fit.

    histogram and histogram_rotated: (BINS,) int64 counts of weights / their standard deviation.
    """

    name: str
    shape: tuple[int, ...]
    rotation: str
    sampled: int  # weights read
    kurtosis: float
    kurtosis_rotated: float
    types: Mapping[str, TypeErrors]
    unfit: tuple[str, ...]
    histogram: I64
    histogram_rotated: I64

    @property
    def size(self) -> int:
        """Number of weights."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class TypeTotal(_BothErrors):
    """One type over all matrices: means over weights, and how many matrices rotation helped."""

    type: str
    bpw: float
    mse: float
    mse_rotated: float
    rel_mse: float
    rel_mse_rotated: float
    lowered: int
    rotated: int
    median_gain: float
    predicted: float | None = None  # divergence by the outputs' errors, in nats
    predicted_rotated: float | None = None

    @property
    def verdict(self) -> str:
        """One sentence, and what to do."""
        if not self.rotated:
            return f"{self.type}: no matrix is rotated"
        counts = (
            f"{self.type}: rotation lowers the error of {self.lowered} of {self.rotated} matrices, "
            f"median gain {self.median_gain:.2f}x"
        )
        if self.predicted is None or self.predicted_rotated is None:
            return f"{counts}; in total {_effect(self.gain, 'none')}"
        gain = metrics.ratio(self.predicted, self.predicted_rotated) or 1.0
        return f"{counts}; at the outputs {_effect(gain, 'auto')}"


def _effect(gain: float, better: str) -> str:
    if gain < 1 - WORTHWHILE:
        return f"it raises it {1 / gain:.2f}x: use --rotate {better}"
    if gain <= 1 + WORTHWHILE:
        return "it makes no difference"
    return f"it lowers it {gain:.2f}x"


def by_importance(reports: Sequence[MatrixReport]) -> list[MatrixReport]:
    """Those first whose relative error weighs most: rotated error of the first type times size."""

    def weight(report: MatrixReport) -> float:
        first = next(iter(report.types.values()), None)
        return first.rel_mse_rotated * report.size if first else 0.0

    return sorted(reports, key=weight, reverse=True)


def totals(reports: Sequence[MatrixReport]) -> list[TypeTotal]:
    """One row for each type over the matrices it fits."""
    names = dict.fromkeys(name for report in reports for name in report.types)
    n_layer = len({layer_prefix(report.name) for report in reports} - {""})
    return [_total(name, [r for r in reports if name in r.types], n_layer) for name in names]


def _total(name: str, reports: Sequence[MatrixReport], n_layer: int) -> TypeTotal:
    errors = [r.types[name] for r in reports]
    sizes = np.array([r.size for r in reports], np.float64)

    def mean(values: Sequence[float]) -> float:
        return float(np.average(values, weights=sizes))

    gains = [e.gain for e, r in zip(errors, reports, strict=True) if r.rotation]
    return TypeTotal(
        type=name,
        bpw=errors[0].bpw,
        mse=mean([e.mse for e in errors]),
        mse_rotated=mean([e.mse_rotated for e in errors]),
        rel_mse=mean([e.rel_mse for e in errors]),
        rel_mse_rotated=mean([e.rel_mse_rotated for e in errors]),
        lowered=sum(gain > 1 for gain in gains),
        rotated=len(gains),
        median_gain=median(gains) if gains else nan,
        predicted=_predicted(reports, [e.rel_output for e in errors], n_layer),
        predicted_rotated=_predicted(reports, [e.rel_output_rotated for e in errors], n_layer),
    )


def _predicted(
    reports: Sequence[MatrixReport], errors: Sequence[float | None], n_layer: int
) -> float | None:
    """The divergence that errors of the outputs cause by what is known of the matrices' roles."""
    total = 0.0
    for report, error in zip(reports, errors, strict=True):
        if error is None:
            return None
        total += error * known_sensitivity(report.name, n_layer, of_outputs=True)
    return total
