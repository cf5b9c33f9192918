"""Who encodes: threads or processes of this machine, or the workers of a cluster."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from tqgguf.errors import PlanError
from tqgguf.formats import FORMATS
from tqgguf.machine import cluster as clusters
from tqgguf.machine.machine import Machine
from tqgguf.machine.memory import default_memory
from tqgguf.machine.processes import processes as start_processes
from tqgguf.machine.threads import default_threads, few, single_threaded_blas
from tqgguf.models import Model, Tensor, model_files, open_tensors
from tqgguf.output.disk import Slot
from tqgguf.output.tiles import Tile, tiles
from tqgguf.pipeline.encoder import Encoder
from tqgguf.pipeline.report import Outcome
from tqgguf.pipeline.run import Run, state_of
from tqgguf.planning.plan import PlannedTensor
from tqgguf.rotation.rotation import Rotation

TILE = 1 << 21  # weights: 8 MiB as float32, a few copies of which each worker holds
CLUSTER_TILES = 16  # tiles in one task of a cluster
BYTES_PER_WEIGHT = 28  # of a tile in work: its copies, codes and control (scripts/peak_memory.py)
FIXED_BYTES = 200 << 20  # Python, NumPy and what does not grow with tiles
PROCESS_BYTES = 80 << 20  # of each worker that is a process
WORTH_PROCESSES = 1 << 27  # weights of a model: starting processes takes about half a second


def is_worth_processes(model: Model) -> bool:
    """Whether a model is so large that starting processes takes less time than they save."""
    return sum(t.size for t in model.tensors.values()) >= WORTH_PROCESSES


@dataclass(frozen=True)
class Staff:
    """How many workers a run may have and of which kind; memory: bytes for what grows with tiles.

    The tiles themselves are fixed, or bytes would change.
    """

    count: int
    memory: int
    processes: bool = False
    cluster: str | None = None


def staff_for(run: Run, machine: Machine) -> Staff:
    """The staff that the machine has memory for. Raises PlanError where one thread is too much."""
    allowed = default_memory() if machine.max_memory is None else machine.max_memory
    encodes = not run.calibrated.rows  # what is left is copying
    wanted = machine.threads or default_threads() if encodes else few(machine.threads)
    free = allowed - FIXED_BYTES
    first = (tile for p in run.plan.tensors for tile in tiles_of(p, run.rotation)[:1])
    each = max(1, max((tile.weights for tile in first), default=0) * BYTES_PER_WEIGHT)
    affordable = min(wanted, free // (each + PROCESS_BYTES))
    worth_it = machine.processes and run.plan.source_weights >= WORTH_PROCESSES and encodes
    cluster = machine.cluster if encodes else None
    if worth_it and affordable > 1:
        return Staff(affordable, free, True, cluster)
    if free < each and machine.max_memory is not None:
        raise PlanError(
            f"--max-memory {allowed >> 20:,} MiB is too little for this model: one thread needs "
            f"{-(-(FIXED_BYTES + each) >> 20):,} MiB"
        )
    return Staff(max(1, min(wanted, free // each)), free, False, cluster)


@dataclass(frozen=True)
class Pool:
    """Who encodes: an executor, how many tasks it runs at once, and how a tensor becomes tasks."""

    pool: Executor
    count: int
    tasks: Callable[[Encoder, Sequence[Tile]], list[Callable[[], Outcome]]]


@contextmanager
def start_workers(model: Model, pool: Executor, staff: Staff) -> Iterator[Pool]:
    """Threads or processes of this machine, with a task per tile, or a cluster."""
    path = model.path.resolve()
    find = partial(_find, path, "".join(map(state_of, model_files(model.path))))
    if staff.cluster:
        with clusters.cluster(staff.cluster) as remote:
            remote.check_sight(path)
            yield Pool(remote.pool, remote.count, partial(_cluster_tasks, find))
    elif staff.processes:
        with start_processes(staff.count, preload=__name__) as pool:
            yield Pool(pool, staff.count, partial(_process_tasks, find, 1))
    else:
        yield Pool(pool, staff.count, lambda encoder, cut: [partial(encoder, tile) for tile in cut])


def _process_tasks(
    find: Callable[[PlannedTensor], Tensor], size: int, encoder: Encoder, cut: Sequence[Tile]
) -> list[Callable[[], Outcome]]:
    """Tasks of `size` tiles for processes that read and write the files themselves."""
    make = partial(
        Encoder,
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
    find: Callable[[], Tensor], make: Callable[[Tensor], Encoder], cut: Sequence[Tile]
) -> Outcome:
    """Encode some tiles of a tensor in a process that opens the model itself."""
    encoder = make(find())
    with single_threaded_blas():
        return Outcome.total([encoder(tile) for tile in cut])


def _cluster_tasks(
    find: Callable[[PlannedTensor], Tensor], encoder: Encoder, cut: Sequence[Tile]
) -> list[Callable[[], Outcome]]:
    """Tasks for the workers of a cluster, which share the files but perhaps not the disk."""
    tasks = _process_tasks(find, CLUSTER_TILES, encoder, cut)
    return [partial(_encode_on_cluster, task, encoder.slot) for task in tasks]


def _encode_on_cluster(task: Callable[[], Outcome], slot: Slot) -> Outcome:
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


def tiles_of(planned: PlannedTensor, rotation: Rotation) -> list[Tile]:
    """A tensor cut into what is encoded apart; never by the machine, or bytes would change."""
    rows, columns = rotation.granule(planned.name)
    block = FORMATS[planned.type].block_size if planned.type in FORMATS else 1
    return tiles(planned.shape, granule=(rows, int(np.lcm(columns, block))), weights=TILE)
