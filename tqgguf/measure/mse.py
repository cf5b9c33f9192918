"""What rotation does to the weights of a model: errors with it and without, matrix by matrix.

Errors are relative to the energy of the matrix in the basis that is quantized, since a fold also
multiplies a norm's gain into the matrices that read it. They tell how well weights fit a grid, not
what a model loses: where the energies of the inputs are known (rotation/energies.py), so are the
errors of the outputs, and the verdict is about those. Of large matrices all weights are read, but
only a sample is quantized, which grows until the standard error of every error is small enough.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import lcm, nan
from statistics import median
from typing import TypeVar

import numpy as np

from tqgguf.errors import PlanError, TqggufError, UnsupportedModelError, WeightError
from tqgguf.formats import FORMATS, find_format, is_float
from tqgguf.kernels import metrics
from tqgguf.kernels.dtypes import F32, F64, I64
from tqgguf.machine.threads import run_all
from tqgguf.measure.synthetic import round_trip
from tqgguf.models import Model, Tensor
from tqgguf.output.tiles import Tile, tiles
from tqgguf.planning.allocation import default_sensitivity
from tqgguf.planning.matrices import is_matrix
from tqgguf.planning.recipes import recipe
from tqgguf.rotation import folding
from tqgguf.rotation.architectures import layer_prefix, role
from tqgguf.rotation.energies import Energies, rotated_energies
from tqgguf.rotation.rotation import Rotation, read_rotation
from tqgguf.rotation.steps import Sides
from tqgguf.rotation.vectors import BALANCE

TYPES = tuple(dict.fromkeys(recipe(name).matrix for name in ("tq-q4", "tq-q3", "tq-q2")))
ACCURACY = 0.01  # relative standard error that the default sample stays below
LIMIT, BINS = 20.0, 400  # the histograms' range in standard deviations, and their bins
WORTHWHILE = 0.01  # a total gain within 1 % of 1 is called no difference
_TILE = 1 << 16  # weights, unless the rotation mixes more
_FIRST = 1 << 19  # weights quantized before the standard error is looked at
_FEWEST = 6  # tiles, however large
Result = TypeVar("Result")


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


def studied_rotation(
    model: Model,
    *,
    block: int | None = None,
    seed: int = 0,
    energies: Energies | None = None,
) -> tuple[Rotation, str]:
    """The rotation `quantize` would fold in, or each matrix alone where it cannot; and a sentence.

    Raises PlanError for models that are rotated already and for a block that does not fit.
    """
    if read_rotation(model).mode != "none":
        raise PlanError(f"{model.path}: already rotated by tqgguf; measure the model it came from")
    try:
        rotation = folding.fused(model, block=block, seed=seed, energies=energies)
        rotation = rotation.with_vectors_of(model)
    except UnsupportedModelError as error:
        names = [t.name for t in model.tensors.values() if is_matrix(t)]
        rotation = folding.per_tensor(model, names, block=block)
        reason = str(error).removeprefix(f"{model.path}: ").partition(";")[0]
        return rotation, (
            f"each matrix rotated alone, in blocks of {rotation.block} along its input "
            f"(not runnable in llama.cpp; a fold is impossible: {reason})"
        )
    within = f", {rotation.value_block} within value heads" if rotation.value_block else ""
    balanced = ", FFN channels balanced" if any(BALANCE in n for n in rotation.vectors) else ""
    return rotation, (
        "fused, as `quantize` folds it: "
        f"blocks of {rotation.block} along the residual stream{within}{balanced}"
    )


def measure_weights(
    model: Model,
    rotation: Rotation,
    *,
    types: Sequence[str] = TYPES,
    sample_rows: int | None = None,
    energies: Energies | None = None,
    threads: int | None = None,
) -> Iterator[MatrixReport]:
    """Measure every matrix that `rotation` or a recipe would treat, in file order.

    sample_rows: rows read of each matrix; None reads all and quantizes enough to reach ACCURACY.
    energies: of the inputs in the original basis, for the errors of the outputs.
    Raises PlanError at the first step for an unknown type, a quantized model, or rows that fit no
    type.
    """
    names = [find_format(name).name for name in types]
    matrices = _matrices(model, rotation)
    _check(model, matrices, names)
    for name, tensor in matrices.items():
        try:
            fit = [t for t in names if tensor.n_in % FORMATS[t].block_size == 0]
            unfit = [t for t in names if t not in fit]
            inputs = _inputs(name, tensor, rotation, energies) if energies else None
            matrix = _Matrix(name, tensor, rotation, fit, sample_rows, inputs, threads)
            yield matrix.measure(unfit)
        except TqggufError as error:
            raise type(error)(f"{name}: {error}") from None


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
        prefix = layer_prefix(report.name)
        layer = int(prefix.split(".")[1]) if prefix else None
        kind = role(report.name)[0]
        total += error * default_sensitivity(kind, layer, n_layer, of_outputs=True)
    return total


def _inputs(name: str, tensor: Tensor, rotation: Rotation, energies: Energies) -> tuple[F32, F32]:
    """Energies as they are and where the rotated weights are stored: (n_mat, n_in) each.

    A matrix of which nothing is known, and the embedding, where tokens are looked up, has ones.
    """
    found = energies(name)
    if found is None:
        found = np.ones((math.prod(tensor.shape[:-2]), tensor.n_in), np.float32)
    return found, rotated_energies(rotation, name, found, tensor.shape)


def _matrices(model: Model, rotation: Rotation) -> dict[str, Tensor]:
    """The matrices of the output by name; an untied head is the embedding's tensor once more."""
    matrices = {t.name: t for t in model.tensors.values() if is_matrix(t)}
    if rotation.mode == "fused" and folding.tied_head(model):
        matrices[folding.HEAD] = model.tensors[folding.EMBEDDING]
    return matrices


def _check(model: Model, matrices: Mapping[str, Tensor], types: Sequence[str]) -> None:
    if not matrices:
        raise PlanError(f"{model.path}: no weight matrices to measure")
    for name, tensor in matrices.items():
        if not is_float(tensor.type):
            raise PlanError(
                f"{model.path}: {name} is already {tensor.type}; measure the F16, BF16 or F32 "
                "model, or look at a finished file with `tqgguf compare`"
            )
    for type in types:
        block = FORMATS[type].block_size
        if all(tensor.n_in % block for tensor in matrices.values()):
            longest = max(tensor.n_in for tensor in matrices.values())
            raise PlanError(
                f"{model.path}: no row fits {type}'s blocks of {block} (the longest is {longest}); "
                "choose a type of smaller blocks with --types"
            )


@dataclass(frozen=True)
class _Sums:
    """Sums over one tile; axis `basis`: as it is, rotated.

    powers: (basis, 5) of x^0..x^4, histograms: (basis, BINS), output: see `_Matrix.inputs`.
    """

    powers: F64
    histograms: I64
    output: float


@dataclass(frozen=True)
class _Matrix:
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
            rotation=describe(self.rotation.sides.get(self.name, Sides())),
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


def describe(sides: Sides) -> str:
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
