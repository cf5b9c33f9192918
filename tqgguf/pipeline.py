"""The story: read -> fold -> quantize -> write, one tile at a time, one Report per tensor."""

import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from functools import cached_property, lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tqgguf.calibration.cached import NOT_CALIBRATED, Calibrated
from tqgguf.errors import PlanError, TqggufError, WeightError
from tqgguf.formats import FORMATS, dequantize, is_float
from tqgguf.formats import quantize as encode
from tqgguf.kernels import metrics
from tqgguf.kernels.dtypes import F32, U8
from tqgguf.machine import cluster as clusters
from tqgguf.machine.content import digest
from tqgguf.machine.machine import Machine
from tqgguf.machine.memory import default_memory
from tqgguf.machine.processes import processes as start_processes
from tqgguf.machine.threads import default_threads, in_order, single_threaded_blas
from tqgguf.models import Model, Tensor, model_files, open_tensors, scale_name
from tqgguf.models.damage import damage, naming_damage
from tqgguf.network.equivalence import check_fold
from tqgguf.output.files import (
    Output,
    Slot,
    check_output,
    is_finished,
    open_output,
    shard_paths,
)
from tqgguf.output.layout import Layout, Split, TensorInfo, lay_out, lay_out_shards
from tqgguf.output.scales import per_row, scales_of
from tqgguf.output.tiles import Tile, tiles
from tqgguf.planning.header import output_metadata
from tqgguf.planning.plan import Plan, PlannedTensor
from tqgguf.rotation.folded import fold
from tqgguf.rotation.rotation import Rotation
from tqgguf.version import __version__

TILE = 1 << 21  # weights: 8 MiB as float32, a few copies of which each worker holds
SAMPLE = 1 << 15  # weights per tensor whose error is measured; their number makes it good to 1 %
CLUSTER_TILES = 16  # tiles in one task of a cluster
BYTES_PER_WEIGHT = 28  # of a tile in work: its copies, codes and control (scripts/peak_memory.py)
FIXED_BYTES = 200 << 20  # Python, NumPy and what does not grow with tiles
PROCESS_BYTES = 80 << 20  # of each worker that is a process
WORTH_PROCESSES = 1 << 27  # weights of a model: starting processes takes about half a second


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
    workers: tuple[str, ...] = ()  # of a cluster, that did it


@dataclass
class _Result:
    """What came of a task: sums over its tiles' sampled weights, and what it took."""

    n_bytes: int = 0
    error: float = 0.0
    energy: float = 0.0
    control_error: float = 0.0
    control_energy: float = 0.0
    seconds: float = 0.0
    workers: tuple[str, ...] = ()

    @classmethod
    def total(cls, results: Sequence["_Result"]) -> "_Result":
        """The results of several tasks as one."""
        sums = {f.name: sum(getattr(r, f.name) for r in results) for f in fields(cls)[:-1]}
        return cls(**sums, workers=tuple(sorted({w for r in results for w in r.workers})))


def convert(
    model: Model,
    plan: Plan,
    path: Path,
    *,
    calibrated: Calibrated = NOT_CALIBRATED,
    importance: Callable[[str], F32 | None] = lambda _: None,
    machine: Machine = Machine(),
    split: Split = Split(),
    resume: bool = False,
    force: bool = False,
    advance: Callable[[int], object] = lambda _: None,
) -> Iterator[Report]:
    """Quantize a model into the file `path`, as planned; the bytes do not depend on `machine`.

    calibrated: rows of tensors that were encoded already. importance: of a tensor's columns in the
    stored basis, one row for each of the matrices stacked in it, (n_mat, n_in) float32 >= 0, or
    None. Yields a Report as each tensor is done; the file has its name once the iterator is
    exhausted. resume: go on with what an interrupted run left; an output that is finished already
    is left alone and yields nothing. advance is called with the number of bytes of each part
    written. Raises OutputError, PlanError where the memory is too small, WeightError naming the
    tensor, and MismatchError where a fold would change the network's output; then nothing is left
    behind.
    """
    inputs = model_files(model.path)
    n_files = len(output_files(model, plan, path, split)) if split else None
    check_output(path, inputs=inputs, force=force or resume, count=n_files)
    importances = {t.name: importance(t.name) for t in plan.tensors}
    rotation = plan.rotation.with_vectors_of(model, threads=machine.threads)
    run = _Run(model, plan, rotation, calibrated, importances)
    layouts = run.layouts(split)
    if resume and is_finished(path, layouts, split=bool(split), inputs=inputs):
        return
    if calibrated.rows:  # what is left is copying
        machine = replace(machine, cluster=None, processes=False)
    count, apart = _worker_count(plan, rotation, machine)
    memory = (machine.max_memory or default_memory()) - FIXED_BYTES
    kept = {"split": bool(split), "resume": resume, "force": force}
    with (
        naming_damage(model),
        open_output(path, layouts, run=run.identity(layouts), inputs=inputs, **kept) as output,
        single_threaded_blas(),
        ThreadPoolExecutor(count) as pool,
        _start_workers(model, pool, count, machine.cluster, processes=apart) as workers,
    ):
        check = pool.submit(check_fold, model, rotation, memory=memory)
        for report in _convert(run, output, workers, advance):
            if check.done():
                check.result()  # refuse at once, not after hours
            yield report
        check.result()


def is_worth_processes(model: Model) -> bool:
    """Whether a model is so large that starting processes takes less time than they save."""
    return sum(t.size for t in model.tensors.values()) >= WORTH_PROCESSES


def output_files(model: Model, plan: Plan, path: Path, split: Split) -> list[Path]:
    """The files that `quantize` writes: `path` itself, or its shards in order."""
    if not split:
        return [path]
    return shard_paths(path, len(lay_out_shards(model.metadata, _infos(plan), split)))


def _infos(plan: Plan) -> list[TensorInfo]:
    return [TensorInfo(t.name, t.shape, t.type) for t in plan.stored]


@dataclass(frozen=True)
class _Run:
    """A model, what is to become of it, and what was found out about it; see `quantize`."""

    model: Model
    plan: Plan
    rotation: Rotation  # the plan's, with its vectors
    calibrated: Calibrated
    importance: Mapping[str, F32 | None]

    @cached_property
    def weighed_by(self) -> str:
        """What the importance matrix says, wherever it lies; "" without one."""
        given = {name: x for name, x in self.importance.items() if x is not None}
        parts = (part for name, x in given.items() for part in (name.encode(), x.tobytes()))
        return digest(parts) if given else ""

    def layouts(self, split: Split) -> list[Layout]:
        """Every byte but the tensors'."""
        metadata = output_metadata(
            self.model, self.plan, self.rotation, self.calibrated.key, self.weighed_by
        )
        infos = _infos(self.plan)
        if not split:
            return [lay_out(metadata, infos)]
        content = (_beginning(tensor).tobytes() for tensor in self.model.tensors.values())
        identity = digest([lay_out(metadata, infos).header, *content])
        return lay_out_shards(metadata, infos, split, run=identity)

    def identity(self, layouts: Sequence[Layout]) -> dict[str, str]:
        """What must be the same for a run to continue another: a text for each aspect."""
        plan = self.plan
        return {
            "tqgguf": f"version {__version__}",
            "the machine": f"{platform.machine()} with NumPy {np.__version__}",
            **{f"input {p.name}": _state(p) for p in model_files(self.model.path)},
            "--type": plan.recipe.name,
            "--rotate": plan.rotation.mode,
            "--seed": str(plan.rotation.seed),
            "the number of files": str(len(layouts)),
            "the content of --calibrate": self.calibrated.key or "none",
            "the content of --imatrix": self.weighed_by or "none",
            "the plan": digest([repr((plan.tensors, plan.quick)).encode()]),
            "the metadata": digest(layout.header for layout in layouts),
        }

    def encoders(self, output: Output) -> "dict[str, _Encoder]":
        """An encoder for each tensor, by its name in the output."""
        scales = self.scales()
        return {
            p.name: _Encoder(
                self.model.tensors[p.source],
                p,
                self.rotation,
                output.slot(p.name),
                self.calibrated.rows.get(p.name),
                self.importance.get(p.name),
                scales.get(p.name),
                self.plan.quick,
            )
            for p in self.plan.stored
        }

    def scales(self) -> dict[str, F32]:
        """The scales of the matrices that have some, by their own names and the matrices'."""
        scaled = [p for p in self.plan.tensors if p.is_scaled]
        folded = fold(self.model, self.rotation).tensors if scaled else {}
        found: dict[str, F32] = {}
        for p in scaled:
            kept = self.model.tensors[p.source].scales if p.is_copy else None
            values = scales_of(folded[p.name]) if kept is None else kept
            found |= {p.name: values, scale_name(p.name): values}
        return found


def _beginning(tensor: Tensor) -> U8 | F32:
    """The first row: fine-tuned models of one shape differ in it somewhere."""
    return tensor.stored(0, 1) if tensor.raw else tensor.rows(0, 1)


def _state(path: Path) -> str:
    stat = path.stat()
    seconds, nanoseconds = divmod(stat.st_mtime_ns, 10**9)
    modified = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
    return f"{stat.st_size:,} bytes of {modified}.{nanoseconds:09d}"


def _worker_count(plan: Plan, rotation: Rotation, machine: Machine) -> tuple[int, bool]:
    """How many workers there may be, and whether there is memory for them to be processes.

    The tiles themselves are fixed, or bytes would change.
    """
    wanted = machine.threads or default_threads()
    allowed = default_memory() if machine.max_memory is None else machine.max_memory
    largest = max((t.weights for p in plan.tensors for t in _tiles(p, rotation)[:1]), default=0)
    free, each = allowed - FIXED_BYTES, max(1, largest * BYTES_PER_WEIGHT)
    affordable = min(wanted, free // (each + PROCESS_BYTES))
    worth_it = machine.processes and plan.source_weights >= WORTH_PROCESSES
    if worth_it and affordable > 1:
        return affordable, True
    if free < each and machine.max_memory is not None:
        raise PlanError(
            f"--max-memory {allowed >> 20:,} MiB is too little for this model: one thread needs "
            f"{-(-(FIXED_BYTES + each) >> 20):,} MiB"
        )
    return max(1, min(wanted, free // each)), False


@dataclass(frozen=True)
class _Workers:
    """Who encodes: an executor, how many tasks it runs at once, and how a tensor becomes tasks."""

    pool: Executor
    count: int
    tasks: Callable[["_Encoder", Sequence[Tile]], list[Callable[[], _Result]]]


@contextmanager
def _start_workers(
    model: Model, pool: Executor, count: int, cluster: str | None, *, processes: bool
) -> Iterator[_Workers]:
    """Threads or processes of this machine, with a task per tile, or a cluster."""
    path = model.path.resolve()
    find = partial(_find, path, "".join(map(_state, model_files(model.path))))
    if cluster:
        with clusters.cluster(cluster) as remote:
            remote.check_sight(path)
            yield _Workers(remote.pool, remote.count, partial(_cluster_tasks, find))
    elif processes:
        with start_processes(count, preload=__name__) as pool:
            yield _Workers(pool, count, partial(_process_tasks, find, 1))
    else:
        yield _Workers(pool, count, lambda encoder, cut: [partial(encoder, tile) for tile in cut])


def _process_tasks(
    find: Callable[[PlannedTensor], Tensor], size: int, encoder: "_Encoder", cut: Sequence[Tile]
) -> list[Callable[[], _Result]]:
    """Tasks of `size` tiles for processes that read and write the files themselves."""
    make = partial(
        _Encoder,
        planned=encoder.planned,
        rotation=encoder.rotation.only(encoder.planned.name),
        slot=encoder.slot,
        importance=encoder.importance,
        scales=encoder.scales,
        quick=encoder.quick,
    )
    task = partial(_encode_in_process, partial(find, encoder.planned), make)
    return [partial(task, cut[i : i + size]) for i in range(0, len(cut), size)]


def _encode_in_process(
    find: Callable[[], Tensor], make: "Callable[[Tensor], _Encoder]", cut: Sequence[Tile]
) -> _Result:
    """Encode some tiles of a tensor in a process that opens the model itself."""
    encoder = make(find())
    with single_threaded_blas():
        return _Result.total([encoder(tile) for tile in cut])


def _cluster_tasks(
    find: Callable[[PlannedTensor], Tensor], encoder: "_Encoder", cut: Sequence[Tile]
) -> list[Callable[[], _Result]]:
    """Tasks for the workers of a cluster, which share the files but perhaps not the disk."""
    tasks = _process_tasks(find, CLUSTER_TILES, encoder, cut)
    return [partial(_encode_on_cluster, task, encoder.slot) for task in tasks]


def _encode_on_cluster(task: Callable[[], _Result], slot: Slot) -> _Result:
    """Run a task on a worker of a cluster and bring its bytes to the disk."""
    result = task()
    slot.sync()
    return replace(result, workers=(clusters.here(),))


def _find(path: Path, stamp: str, planned: PlannedTensor) -> Tensor:
    found = _opened(path, stamp)[planned.source]
    return planned.pad.apply(found) if planned.pad else found


@lru_cache(maxsize=1)
def _opened(path: Path, stamp: str) -> Mapping[str, Tensor]:  # noqa: ARG001  the model's state
    return open_tensors(path)


def _convert(
    run: _Run, output: Output, workers: _Workers, advance: Callable[[int], object]
) -> Iterator[Report]:
    """Keep the workers fed with tiles in file order and report each tensor when it is complete."""
    done: dict[str, Report] = {}
    encoders = run.encoders(output)

    def tasks() -> Iterator[tuple[PlannedTensor, list[Callable[[], _Result]]]]:
        for p in run.plan.stored:
            note = output.recorded(p.name)
            if note is not None:
                done[p.name] = _report_of(note)
                advance(p.n_bytes)
            cut = _tiles(p, run.rotation) if note is None else []
            yield p, workers.tasks(encoders[p.name], cut)

    groups = in_order(
        tasks(), workers.pool, ahead=2 * workers.count, on_result=lambda r: advance(r.n_bytes)
    )
    for p, results in groups:
        if p.name not in done:
            done[p.name] = _report(p, _Result.total(results))
            output.record(p.name, asdict(done[p.name]))
        yield done.pop(p.name)


def _tiles(planned: PlannedTensor, rotation: Rotation) -> list[Tile]:
    rows, columns = rotation.granule(planned.name)
    block = FORMATS[planned.type].block_size if planned.type in FORMATS else 1
    return tiles(planned.shape, granule=(rows, int(np.lcm(columns, block))), weights=TILE)


def _report(planned: PlannedTensor, result: _Result) -> Report:
    control = result.control_error, result.control_energy
    return Report(
        planned.name,
        planned.type,
        planned.shape,
        planned.n_bytes,
        metrics.ratio(result.error, result.energy),
        metrics.ratio(*control) if control[1] else None,
        result.seconds,
        planned.reason,
        result.workers,
    )


def _report_of(note: dict[str, Any]) -> Report:
    """A report as the journal kept it."""
    values = {field.name: note[field.name] for field in fields(Report)}
    sequences = {name: tuple(note[name]) for name in ("shape", "workers")}
    return Report(**{**values, **sequences})


@dataclass(frozen=True)
class _Encoder:
    """Everything that is done to one tensor."""

    source: Tensor
    planned: PlannedTensor
    rotation: Rotation
    slot: Slot
    rounded: U8 | None = None
    importance: F32 | None = None
    scales: F32 | None = None  # of its matrices, which it is if it is no matrix itself
    quick: bool = False

    def __call__(self, tile: Tile) -> _Result:
        began = time.perf_counter()
        try:
            result = self._copy(tile) if self.planned.is_copy else self._encode(tile)
        except TqggufError as error:
            raise type(error)(f"{self.planned.name}: {error}") from None
        result.seconds = time.perf_counter() - began
        return result

    def _copy(self, tile: Tile) -> _Result:
        data = self.source.stored(*tile.rows)
        self._write(tile, data)
        return _Result(data.nbytes)

    def _encode(self, tile: Tile) -> _Result:
        p = self.planned
        if self.scales is not None and not p.is_scaled:
            return self._put_scales(self.scales[None])
        source = self.source.read_tile(tile.rows, tile.columns)
        if not np.isfinite(source).all():
            raise WeightError(damage(self.source))
        first = (tile.rows[0], tile.columns[0])
        x = self.rotation.apply(p.name, source, shape=p.shape, first=first) if p.sides else source
        if self.scales is not None:
            steps = per_row(self.scales, *tile.rows, self.source.n_rows)
            source, x = source / steps, x / steps
        data = self._rounded(x, tile) if self.rounded is None else self._cut(tile)
        self._write(tile, data)
        return self._judge(source, x, data)

    def _put_scales(self, row: F32) -> _Result:
        self.slot.write(row.view(np.uint8), row=0)
        return _Result(row.nbytes)

    def _rounded(self, x: F32, tile: Tile) -> U8:
        """Encode a tile, each of the matrices in it with its own importance."""
        if self.importance is None:
            return encode(x, self.planned.type, quick=self.quick, threads=1)
        n_out = self.source.n_rows // len(self.importance)
        begin, end = tile.rows
        cuts = [begin, *range((begin // n_out + 1) * n_out, end, n_out), end]
        columns = self.importance[:, slice(*tile.columns)]
        parts = [
            encode(x[a - begin : b - begin], self.planned.type, columns[a // n_out], threads=1)
            for a, b in pairwise(cuts)
        ]
        return np.concatenate(parts)

    def _cut(self, tile: Tile) -> U8:
        """The tile's bytes of what was encoded already."""
        rows = self.rounded
        if rows is None:
            raise AssertionError(self.planned.name)
        begin, end = (c * self.slot.row_bytes // self.planned.shape[-1] for c in tile.columns)
        return np.ascontiguousarray(rows[slice(*tile.rows), begin:end])

    def _write(self, tile: Tile, data: U8) -> None:
        begin = tile.columns[0] * self.slot.row_bytes // self.planned.shape[-1]
        self.slot.write(data, row=tile.rows[0], begin=begin)

    def _judge(self, source: F32, x: F32, data: U8) -> _Result:
        """Errors on evenly spaced rows, as many as the tensor's sample needs."""
        p = self.planned
        every = max(1, p.size // SAMPLE)
        result = _Result(data.nbytes)
        result.error, result.energy = _error(x[::every], data[::every], p.type)
        if p.sides and not is_float(p.type):
            sample = np.ascontiguousarray(source[::every])
            control = encode(sample, p.type, quick=self.quick, threads=1)
            result.control_error, result.control_energy = _error(sample, control, p.type)
        return result


def _error(x: F32, data: U8, type: str) -> tuple[float, float]:
    """The energy of the error and that of the weights."""
    return metrics.error_and_energy(x, dequantize(data, type, x.shape[1]))
