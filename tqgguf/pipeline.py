"""The story: read -> fold -> quantize -> write, one tile at a time, one Report per tensor."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_VERSION

from tqgguf.errors import TqggufError, WeightError
from tqgguf.formats import FORMATS, dequantize
from tqgguf.formats import quantize as encode
from tqgguf.kernels.dtypes import F32, U8
from tqgguf.kernels.threads import default_threads, single_threaded_blas
from tqgguf.models import Model, Tensor
from tqgguf.models.layout import TensorInfo, lay_out
from tqgguf.models.metadata import Value
from tqgguf.models.metadata import encode as value
from tqgguf.models.output import OutputFile, check_output, open_output
from tqgguf.models.rotation import PREFIX, Rotation
from tqgguf.models.tiles import Tile, tiles
from tqgguf.plan import PLAIN, Plan, PlannedTensor

TILE = 1 << 22  # weights: 16 MiB as float32, a few copies of which each worker holds
SAMPLE = 1 << 18  # weights per tensor whose error is measured; their number makes it good to 1 %


@dataclass(frozen=True)
class Report:
    """What became of one tensor.

    rel_mse is sum (w - w')^2 / sum w^2 in the basis that is stored, rel_mse_unrotated the same for
    the same type without rotation: the control. Large tensors are measured on a sample of rows.
    None where nothing was rounded or rotated.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    n_bytes: int
    rel_mse: float
    rel_mse_unrotated: float | None
    seconds: float
    reason: str = ""


@dataclass
class _Errors:
    """Sums over the sampled weights of one tile."""

    error: float = 0.0
    energy: float = 0.0
    control_error: float = 0.0
    control_energy: float = 0.0
    seconds: float = 0.0


def quantize(
    model: Model,
    plan: Plan,
    path: Path,
    *,
    threads: int | None = None,
    force: bool = False,
    advance: Callable[[int], object] = lambda _: None,
) -> Iterator[Report]:
    """Quantize a model into the file `path`, as planned; the bytes do not depend on `threads`.

    Yields a Report as each tensor is done; the file has its name once the iterator is exhausted.
    advance is called with the number of bytes of each part written. Raises OutputError, and
    WeightError naming the tensor; then nothing is left behind.
    """
    check_output(path, inputs=[model.path], force=force)
    rotation = plan.rotation.with_vectors_of(model)
    infos = [TensorInfo(t.name, t.shape, t.type) for t in plan.tensors]
    layout = lay_out(output_metadata(model, plan, rotation), infos)
    with open_output(path, layout) as file, single_threaded_blas():
        yield from _run(model, plan, rotation, file, threads or default_threads(), advance)


def output_metadata(model: Model, plan: Plan, rotation: Rotation) -> dict[str, Value]:
    """The input's metadata unchanged, but for the file's type and the record of the rotation."""
    metadata = dict(model.metadata)
    if rotation.mode != "none" or f"{PREFIX}version" not in metadata:
        metadata = {k: v for k, v in metadata.items() if not k.startswith(PREFIX)}
        metadata |= rotation.metadata()
    return metadata | {
        "general.file_type": value(int(plan.recipe.file_type)),
        "general.quantization_version": value(int(GGML_QUANT_VERSION)),
        f"{PREFIX}recipe": value(plan.recipe.name),
    }


def _run(
    model: Model,
    plan: Plan,
    rotation: Rotation,
    file: OutputFile,
    threads: int,
    advance: Callable[[int], object],
) -> Iterator[Report]:
    """Keep the workers fed with tiles in file order and report each tensor when it is complete."""
    waiting: deque[tuple[PlannedTensor, list[Future[_Errors]]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for planned in plan.tensors:
                work = _Work(model.tensors[planned.source], planned, rotation, file)
                waiting.append((planned, [pool.submit(work, tile) for tile in work.tiles()]))
                while sum(len(futures) for _, futures in waiting) > 2 * threads:
                    yield _collect(*waiting.popleft(), advance)
            while waiting:
                yield _collect(*waiting.popleft(), advance)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _collect(
    planned: PlannedTensor, futures: list[Future[_Errors]], advance: Callable[[int], object]
) -> Report:
    total = _Errors()
    for future in futures:
        part = future.result()
        advance(planned.n_bytes // len(futures))
        total.error += part.error
        total.energy += part.energy
        total.control_error += part.control_error
        total.control_energy += part.control_energy
        total.seconds += part.seconds
    control = total.control_error / total.control_energy if total.control_energy else None
    return Report(
        planned.name,
        planned.type,
        planned.shape,
        planned.n_bytes,
        total.error / total.energy if total.energy else 0.0,
        control,
        total.seconds,
        planned.reason,
    )


@dataclass(frozen=True)
class _Work:
    """Everything that is done to one tensor."""

    source: Tensor
    planned: PlannedTensor
    rotation: Rotation
    file: OutputFile

    def tiles(self) -> list[Tile]:
        rows, columns = self.rotation.granule(self.planned.name)
        block = FORMATS[self.planned.type].block_size if self.planned.type in FORMATS else 1
        return tiles(self.planned.shape, granule=(rows, np.lcm(columns, block)), weights=TILE)

    def __call__(self, tile: Tile) -> _Errors:
        began = time.perf_counter()
        if self._is_copy():
            self._copy(tile)
            return _Errors(seconds=time.perf_counter() - began)
        try:
            errors = self._encode(tile)
        except TqggufError as error:
            raise type(error)(f"{self.planned.name}: {error}") from None
        errors.seconds = time.perf_counter() - began
        return errors

    def _is_copy(self) -> bool:
        p = self.planned
        return p.type == p.source_type and p.type not in PLAIN and not p.sides

    def _copy(self, tile: Tile) -> None:
        if self.source.raw is None:
            raise AssertionError(f"{self.source.name} has no stored bytes to copy")
        data = self.source.raw().reshape(self.source.n_rows, -1)[slice(*tile.rows)]
        self._write(tile, data)

    def _encode(self, tile: Tile) -> _Errors:
        p = self.planned
        source = self.source.read_tile(tile.rows, tile.columns)
        if not np.isfinite(source).all():
            raise WeightError(_count_bad(self.source))
        first = (tile.rows[0], tile.columns[0])
        x = self.rotation.apply(p.name, source, shape=p.shape, first=first) if p.sides else source
        data = encode(x, p.type, threads=1)
        self._write(tile, data)
        return self._measure(source, x, data)

    def _write(self, tile: Tile, data: U8) -> None:
        info = TensorInfo(self.planned.name, self.planned.shape, self.planned.type)
        begin = tile.columns[0] * info.row_bytes // info.shape[-1]
        self.file.write(info.name, data, row=tile.rows[0], row_bytes=info.row_bytes, begin=begin)

    def _measure(self, source: F32, x: F32, data: U8) -> _Errors:
        """Errors on evenly spaced rows, as many as the tensor's sample needs."""
        p = self.planned
        every = max(1, p.size // SAMPLE)
        errors = _Errors()
        errors.error, errors.energy = _error(x[::every], data[::every], p.type)
        if p.sides and p.type not in PLAIN:
            sample = np.ascontiguousarray(source[::every])
            control = encode(sample, p.type, threads=1)
            errors.control_error, errors.control_energy = _error(sample, control, p.type)
        return errors


def _error(x: F32, data: U8, type: str) -> tuple[float, float]:
    """Sum of squared errors and of squares, float64."""
    difference = dequantize(data, type, x.shape[1]) - x
    return (
        float(np.square(difference).sum(dtype=np.float64)),
        float(np.square(x).sum(dtype=np.float64)),
    )


def _count_bad(tensor: Tensor) -> str:
    """Count NaN and Inf over a whole tensor, a few rows at a time."""
    step = max(1, TILE // tensor.n_in)
    nan = inf = 0
    for start in range(0, tensor.n_rows, step):
        rows = tensor.rows(start, min(start + step, tensor.n_rows))
        nan, inf = nan + int(np.isnan(rows).sum()), inf + int(np.isinf(rows).sum())
    return (
        f"{nan:,} NaN and {inf:,} infinite weights of {tensor.size:,}; "
        "the model is damaged or was saved in a type too small for it"
    )
