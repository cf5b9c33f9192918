"""How far finished files are from their original, tensor by tensor, in the original's basis.

Any quantizer's GGUF will do; the rotation that tqgguf records in its own is undone first. Undoing a
fold also divides by a norm's gain, which magnifies errors in columns that the network then
multiplies by that small gain again. So every error is also given `seen`: with rows and columns
weighted by the factors that a fold would multiply in (norms' gains, the balance of channels), for
all files alike. That is the fair comparison.
"""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np

from tqgguf.errors import FileFormatError, PlanError, ShapeError, UnsupportedModelError, WeightError
from tqgguf.kernels import metrics
from tqgguf.kernels.dtypes import F32
from tqgguf.machine.threads import run_all
from tqgguf.models import Model, Tensor
from tqgguf.models.damage import naming_damage
from tqgguf.models.gguf import disk_bytes
from tqgguf.output.tiles import tiles
from tqgguf.rotation import ends, folding
from tqgguf.rotation.recorded import read_rotation
from tqgguf.rotation.restored import restored
from tqgguf.rotation.rotation import NO_ROTATION, Rotation

_TILE = 1 << 20  # weights compared at a time, unless the rotation mixes more


@dataclass(frozen=True)
class TensorError:
    """One tensor of a file against the original's; max_abs_err is in weights."""

    name: str
    type: str
    shape: tuple[int, ...]
    n_bytes: int
    mse: float
    rel_mse: float
    rel_mse_seen: float
    cosine: float
    max_abs_err: float

    @property
    def size(self) -> int:
        """Number of weights."""
        return prod(self.shape)

    @property
    def bpw(self) -> float:
        """Bits per weight."""
        return 8 * self.n_bytes / self.size

    @property
    def sqnr_db(self) -> float:
        """Signal to quantization noise ratio; infinite for an exact tensor."""
        return metrics.sqnr_db(self.rel_mse)


@dataclass(frozen=True)
class FileReport:
    """A whole file, n_bytes long, all shards together.

    bpw counts tensor data per weight of the original, so that an untied head shows as a cost.
    """

    path: Path
    rotation: str
    n_bytes: int
    bpw: float
    tensors: tuple[TensorError, ...]

    @property
    def rel_mse(self) -> float:
        """The mean relative error of a weight of a matrix."""
        return self._mean([t.rel_mse for t in self._matrices])

    @property
    def rel_mse_seen(self) -> float:
        """The same with rows and columns weighted by the factors of a fold."""
        return self._mean([t.rel_mse_seen for t in self._matrices])

    @property
    def sqnr_db(self) -> float:
        """The mean relative error in dB."""
        return metrics.sqnr_db(self.rel_mse)

    @property
    def max_abs_err(self) -> float:
        """The largest error of a weight."""
        return max(t.max_abs_err for t in self.tensors)

    @property
    def _matrices(self) -> list[TensorError]:
        return [t for t in self.tensors if len(t.shape) >= 2] or list(self.tensors)

    def _mean(self, values: Sequence[float]) -> float:
        return float(np.average(values, weights=[t.size for t in self._matrices]))


def compare(original: Model, quantized: Model, *, threads: int | None = None) -> FileReport:
    """Compare a finished file with its original, tensor by tensor.

    Raises FileFormatError where a tensor is missing on either side, ShapeError where shapes differ,
    PlanError for an empty model, WeightError for NaN and infinite weights of either.
    """
    if not original.tensors:
        raise PlanError(f"{original.path}: the model has no tensors to compare")
    reference, approximation = restored(original), restored(quantized)
    sources = _match(reference, approximation)
    rotation = read_rotation(quantized)
    weighting = _weighting(reference)
    errors = []
    with naming_damage(original, with_path=True), naming_damage(quantized, with_path=True):
        for name, source in sources.items():
            tensor, (rows, _) = approximation.tensors[name], rotation.granule(name)
            found = _tensor_error(source, tensor, rows, weighting, threads)
            errors.append(replace(found, n_bytes=quantized.tensors[name].n_bytes))
    stored = sum(t.n_bytes for t in errors)
    return FileReport(
        path=quantized.path,
        rotation=rotation.mode,
        n_bytes=disk_bytes(quantized.path) if quantized.path.suffix == ".gguf" else stored,
        bpw=8 * stored / sum(t.size for t in original.tensors.values()),
        tensors=tuple(errors),
    )


def _match(original: Model, quantized: Model) -> dict[str, Tensor]:
    """The original of every tensor of the file; an untied head is the embedding once more."""
    sources = dict(original.tensors)
    if ends.tied_head(original) and ends.HEAD in quantized.tensors:
        sources[ends.HEAD] = sources[ends.EMBEDDING]
    for name in (n for n in quantized.tensors if n not in sources):
        raise FileFormatError(f"{quantized.path}: {name} is not in the original {original.path}")
    for name, source in sources.items():
        tensor = quantized.tensors.get(name)
        if tensor is None:
            raise FileFormatError(f"{quantized.path}: {name} of {original.path} is missing")
        if tensor.shape != source.shape:
            raise ShapeError(
                f"{quantized.path}: {name} is {_by(tensor.shape)}, "
                f"but {_by(source.shape)} in {original.path}"
            )
    return {name: sources[name] for name in quantized.tensors}


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _weighting(model: Model) -> Rotation:
    """What a fold of this model would multiply rows and columns by, without its rotations."""
    for fold in (folding.fused, folding.values):
        with suppress(UnsupportedModelError):
            return fold(model).with_vectors_of(model).diagonal()
    return NO_ROTATION


def _tensor_error(
    source: Tensor, tensor: Tensor, granule: int, weighting: Rotation, threads: int | None
) -> TensorError:
    cut = tiles(source.shape, granule=(granule, source.n_in), weights=_TILE)
    parts: dict[int, tuple[list[float], float]] = {}
    is_matrix = len(source.shape) >= 2

    def work(i: int) -> None:
        x, y = (t.rows(*cut[i].rows) for t in (source, tensor))
        parts[i] = _sums(x, y)
        if is_matrix and weighting.sides.get(tensor.name):
            first = (cut[i].rows[0], 0)
            parts[i][0][-2:] = [
                metrics.sum_squares(
                    weighting.apply(tensor.name, v, shape=source.shape, first=first)
                )
                for v in (y - x, x)
            ]

    run_all(work, list(range(len(cut))), threads=threads)
    sums = np.sum([parts[i][0] for i in range(len(cut))], axis=0)
    error, energy, other, product, seen_error, seen_energy = map(float, sums)
    if not math.isfinite(error):
        raise WeightError(f"{tensor.name}: the error is beyond float64")
    return TensorError(
        name=tensor.name,
        type=tensor.type,
        shape=tensor.shape,
        n_bytes=tensor.n_bytes,
        mse=error / source.size,
        rel_mse=metrics.ratio(error, energy),
        rel_mse_seen=metrics.ratio(seen_error, seen_energy),
        cosine=metrics.cosine(product, energy, other),
        max_abs_err=max(largest for _, largest in parts.values()),
    )


def _sums(x: F32, y: F32) -> tuple[list[float], float]:
    """Squared error, energies and product of both; error and energy again; the largest error."""
    error = y - x
    sums = [metrics.sum_squares(error), metrics.sum_squares(x), metrics.sum_squares(y)]
    sums.append(float(np.sum(np.einsum("nw,nw->n", x, y), dtype=np.float64)))
    return [*sums, *sums[:2]], float(np.abs(error).max(initial=0))
