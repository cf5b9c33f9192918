"""Measure one matrix: all weights are read, of a large one only a sample is quantized.

The sample grows until the standard error of every error is small enough.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import lcm
from typing import TypeVar

import numpy as np

from tqgguf.errors import WeightError
from tqgguf.formats import FORMATS
from tqgguf.kernels import metrics
from tqgguf.kernels.dtypes import F32, F64, I64
from tqgguf.machine.threads import run_all
from tqgguf.measure.gains import MatrixReport, TypeErrors
from tqgguf.measure.synthetic import round_trip
from tqgguf.models import Tensor
from tqgguf.output.tiles import Tile, tiles
from tqgguf.rotation.rotation import Rotation
from tqgguf.rotation.steps import Sides

ACCURACY = 0.01  # relative standard error that the default sample stays below
LIMIT, BINS = 20.0, 400  # the histograms' range in standard deviations, and their bins
_TILE = 1 << 16  # weights, unless the rotation mixes more
_FIRST = 1 << 19  # weights quantized before the standard error is looked at
_FEWEST = 6  # tiles, however large
Result = TypeVar("Result")


@dataclass(frozen=True)
class _Sums:
    """Sums over one tile; axis `basis`: as it is, rotated.

    powers: (basis, 5) of x^0..x^4, histograms: (basis, BINS), output: see `Matrix.inputs`.
    """

    powers: F64
    histograms: I64
    output: float


@dataclass(frozen=True)
class Matrix:
    """One matrix and how it is to be measured; types are those that its rows fit.

    inputs: energies of its inputs, (n_mat, n_in) in either basis, which weigh squares of weights
    and of errors; None where only weights are looked at.
    """

    name: str
    tensor: Tensor
    rotation: Rotation
    types: Sequence[str]
    sample_rows: int | None
    inputs: tuple[F32, F32] | None
    threads: int | None

    def measure(self, unfit: Sequence[str]) -> MatrixReport:
        """Sums over all tiles, errors on as many as they need."""
        cut = self._tiles()
        chosen = cut if self.sample_rows is None else self._some(cut)
        scales = self._scales(chosen[0])
        sums = self._all(lambda tile: self._sums(tile, scales), chosen)
        powers = np.stack([s.powers for s in sums])
        if self.sample_rows is None:
            errors, uncertainty = self._drawn_errors(cut, powers[..., 2])
        else:
            parts = np.stack(self._all(self._errors, chosen))
            errors = parts.sum(axis=0)
            uncertainty = _uncertainty(parts, powers[..., 2], population=len(cut))
        return self._report(sums, errors, uncertainty, unfit)

    def _tiles(self) -> list[Tile]:
        rows, columns = self.rotation.granule(self.name)
        columns = lcm(columns, *(FORMATS[t].block_size for t in self.types))
        return tiles(self.tensor.shape, granule=(rows, columns), weights=_TILE)

    def _some(self, cut: Sequence[Tile]) -> list[Tile]:
        """Random tiles of at least `sample_rows` rows' weights."""
        order = np.random.default_rng(0).permutation(len(cut))
        wanted = -(-(self.sample_rows or 0) * self.tensor.n_in // _weights(cut[0]))
        return [cut[i] for i in order[: max(1, wanted)]]

    def _bases(self, tile: Tile) -> tuple[F32, F32]:
        """The weights of a tile as they are and rotated."""
        x = np.ascontiguousarray(self.tensor.read_tile(tile.rows, tile.columns))
        bad = x.size - int(np.count_nonzero(np.isfinite(x)))
        if bad:
            top, bottom = tile.rows
            raise WeightError(f"{bad} weights in rows {top} to {bottom - 1} are NaN or infinite")
        first = (tile.rows[0], tile.columns[0])
        turned = self.rotation.apply(self.name, x, shape=self.tensor.shape, first=first)
        if not np.isfinite(turned).all():
            raise WeightError("the rotated weights are beyond float32")
        return x, turned

    def _scales(self, tile: Tile) -> tuple[float, float]:
        """The standard deviations that the histograms are drawn in, from one tile."""
        plain, rotated = (float(x.std(dtype=np.float64)) or 1.0 for x in self._bases(tile))
        return plain, rotated

    def _all(self, work: Callable[[Tile], Result], chosen: Sequence[Tile]) -> list[Result]:
        """work(tile) for every tile, on threads, in order."""
        results: dict[int, Result] = {}

        def run(i: int) -> None:
            results[i] = work(chosen[i])

        run_all(run, list(range(len(chosen))), threads=self.threads)
        return [results[i] for i in range(len(chosen))]

    def _sums(self, tile: Tile, scales: tuple[float, float]) -> _Sums:
        bases = self._bases(tile)
        counts = [
            metrics.histogram(x / np.float32(scale), limit=LIMIT, bins=BINS)
            for x, scale in zip(bases, scales, strict=True)
        ]
        powers = np.stack([metrics.power_sums(x) for x in bases])
        output = self._output(bases[0], tile, 0) if self.inputs else 0.0
        return _Sums(powers, np.stack(counts), output)

    def _errors(self, tile: Tile) -> F64:
        """Squared errors of a tile, (basis, types), then of its outputs where inputs are known."""
        sums = np.empty((4 if self.inputs else 2, len(self.types)))
        for basis, x in enumerate(self._bases(tile)):
            for i, t in enumerate(self.types):
                error = round_trip(x, t, threads=1) - x
                sums[basis, i] = metrics.sum_squares(error)
                if self.inputs:
                    sums[2 + basis, i] = self._output(error, tile, basis)
        return sums

    def _output(self, x: F32, tile: Tile, basis: int) -> float:
        """The squares of a tile's values, weighed by the energies of their inputs."""
        if self.inputs is None:
            raise AssertionError(self.name)
        energies = self.inputs[basis][:, slice(*tile.columns)].astype(np.float64)
        of_row = np.arange(*tile.rows) // self.tensor.shape[-2]
        per_matrix = np.zeros(energies.shape)
        np.add.at(per_matrix, of_row, np.square(x, dtype=np.float64))
        return float((per_matrix * energies).sum())

    def _drawn_errors(self, cut: Sequence[Tile], energies: F64) -> tuple[F64, F64]:
        """Squared errors of the whole matrix, (basis, types), and their standard errors (types,).

        Tiles are drawn in proportion to their energy, so that a strip of outlier channels counts
        for what it is worth; a tile's error over its probability estimates the total (Hansen and
        Hurwitz 1943). Drawing goes on until the estimates agree to ACCURACY.
        """
        rng = np.random.default_rng(0)
        chance = _chances(energies)
        known: dict[int, F64] = {}
        drawn: list[int] = []
        count = max(_FEWEST, -(-_FIRST // _weights(cut[0])))
        while count < len(cut):
            drawn += rng.choice(len(cut), count - len(drawn), p=chance).tolist()
            new = sorted(set(drawn) - set(known))
            known |= dict(zip(new, self._all(self._errors, [cut[i] for i in new]), strict=True))
            estimates = np.stack([known[i] / chance[i] for i in drawn])
            uncertainty = _spread(estimates)
            if uncertainty.max(initial=0) <= ACCURACY:
                return estimates.mean(axis=0), uncertainty
            count *= 2
        rest = [i for i in range(len(cut)) if i not in known]
        known |= dict(zip(rest, self._all(self._errors, [cut[i] for i in rest]), strict=True))
        return np.sum(list(known.values()), axis=0), np.zeros(len(self.types))

    def _report(
        self, sums: Sequence[_Sums], errors: F64, uncertainty: F64, unfit: Sequence[str]
    ) -> MatrixReport:
        powers = np.sum([s.powers for s in sums], axis=0)
        output = sum(s.output for s in sums)
        histogram, rotated = np.sum([s.histograms for s in sums], axis=0)
        return MatrixReport(
            name=self.name,
            shape=self.tensor.shape,
            rotation=sides_in_words(self.rotation.sides.get(self.name, Sides())),
            sampled=int(powers[0, 0]),
            kurtosis=metrics.kurtosis_of(powers[0]),
            kurtosis_rotated=metrics.kurtosis_of(powers[1]),
            types={
                t: _type_errors(t, powers, output, errors[:, i], float(uncertainty[i]))
                for i, t in enumerate(self.types)
            },
            unfit=tuple(unfit),
            histogram=histogram,
            histogram_rotated=rotated,
        )


def sides_in_words(sides: Sides) -> str:
    """The steps of a rotation without the names of their vectors: `in gain residual, out value`."""
    parts = (("in", sides.columns), ("out", sides.rows))
    return ", ".join(
        " ".join([side, *(step.verb for step in steps)]) for side, steps in parts if steps
    )


def _type_errors(
    name: str, powers: F64, output: float, errors: F64, standard_error: float
) -> TypeErrors:
    count, energies = powers[0, 0], powers[:, 2]
    return TypeErrors(
        bpw=FORMATS[name].bits_per_weight,
        mse=float(errors[0] / count),
        mse_rotated=float(errors[1] / count),
        rel_mse=metrics.ratio(float(errors[0]), float(energies[0])),
        rel_mse_rotated=metrics.ratio(float(errors[1]), float(energies[1])),
        standard_error=standard_error,
        rel_output=metrics.ratio(float(errors[2]), output) if len(errors) > 2 else None,
        rel_output_rotated=metrics.ratio(float(errors[3]), output) if len(errors) > 2 else None,
    )


def _weights(tile: Tile) -> int:
    return (tile.rows[1] - tile.rows[0]) * (tile.columns[1] - tile.columns[0])


def _chances(energies: F64) -> F64:
    """Probabilities in proportion to a tile's share of the energy: (tiles, basis) -> (tiles,)."""
    shares = energies / np.maximum(energies.sum(axis=0), np.finfo(np.float64).tiny)
    floor = 0.1 / len(energies)  # no tile is out of reach, and none counts for too much
    chances = shares.mean(axis=1) + floor
    return np.asarray(chances / chances.sum())


def _spread(estimates: F64) -> F64:
    """The relative standard error of a mean of estimates, the worse basis.

    estimates: (draws, basis, types) -> (types,).
    """
    mean = np.maximum(estimates.mean(axis=0), np.finfo(np.float64).tiny)
    relative = estimates.std(axis=0, ddof=1) / math.sqrt(len(estimates)) / mean
    return np.asarray(relative.max(axis=0))


def _uncertainty(errors: F64, energies: F64, *, population: int) -> F64:
    """The relative standard error of each type's relative error, the worse basis: (types,).

    errors: (tiles, basis, types), energies: (tiles, basis), of tiles chosen with equal chances.
    """
    return np.array(
        [
            max(
                metrics.ratio_standard_error(errors[:, b, t], energies[:, b], population=population)
                for b in range(2)
            )
            for t in range(errors.shape[2])
        ]
    )
