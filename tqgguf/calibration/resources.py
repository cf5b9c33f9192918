"""What a calibration takes of memory and of the disk: from shapes alone, before it begins."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tqgguf.calibration.desk import SIZES
from tqgguf.errors import PlanError
from tqgguf.formats import is_float
from tqgguf.machine.machine import Machine
from tqgguf.machine.memory import default_memory
from tqgguf.machine.threads import default_threads
from tqgguf.models import Model, Tensor
from tqgguf.models.roles import layer_prefix
from tqgguf.network.graph import read_graph
from tqgguf.network.ops import score_bytes
from tqgguf.rotation.ends import EMBEDDING, HEAD

_CONDUCTOR_BYTES = 200 << 20  # the process that hands out the work
_PLANNING_BYTES = 250 << 20  # the same while types and rotations are chosen
_WORKER_BYTES = 50 << 20  # Python and NumPy
_SCORES = 3  # copies of attention's scores
_SHORT_SCORES_BYTES = 16 << 20  # the same of a few hundred tokens
_STREAMS, _INNER = 12, 6  # arrays as wide as the stream, and as wide as the widest, in a pass
_ROUNDING = 9  # copies of the rows in work
_PANELS = 5 * 256  # numbers for each of their columns that revisiting takes
_FACTORING = 9  # bytes for each of the second moments: two copies, and some of the rows
_LOOKED_UP = 3  # copies of the streams that are looked up at once
_EXPERTS = 8  # that see a token, at most
_PREPARED = 1024  # numbers for each column of a factor, besides it
_WORTH_PROCESSES = 1 << 35  # weights times tokens: starting processes takes about half a second


@dataclass(frozen=True)
class Resources:
    """What a calibration takes.

    workers: how many work at once; apart: whether they are processes. held: bytes of activations
    that are kept while a layer is worked on. factors: how many may be factored at once. memory,
    disk: bytes at the peak. flops: in all.
    """

    workers: int
    apart: bool
    held: int
    factors: int
    memory: int
    disk: int


def resources(
    model: Model,
    types: Mapping[str, str],
    shape: tuple[int, int],
    machine: Machine = Machine(),
) -> Resources:
    """What calibrating on (n_seq, n_tokens) tokens takes.

    Of memory it takes twice `default_memory` where it may. Raises PlanError where
    machine.max_memory is too little for a single worker.
    """
    need = _Need.of(model, types, shape)
    allowed = machine.max_memory or 2 * default_memory()
    piece = max(need.passing, need.rounding)
    each = _WORKER_BYTES + piece
    free = allowed - _CONDUCTOR_BYTES
    least = max(each, need.factoring + _WORKER_BYTES, need.looking_up)
    if machine.max_memory is not None and free < least:
        raise PlanError(
            f"--max-memory {allowed >> 20:,} MiB is too little to calibrate this model: one worker "
            f"needs {-(-(least + _CONDUCTOR_BYTES) >> 20):,} MiB"
        )
    more = max(0, need.factoring - piece)  # that a worker takes while it factors
    ahead = max(0, need.factoring_ahead - piece)
    workers = int(max(1, min(machine.threads or default_threads(), (free - more) // each)))
    spare = free - workers * each - more
    held = need.held if need.held <= spare else 0
    factors = 1 + max(0, spare - held) // max(1, ahead)
    apart = workers > 1 and is_worth_processes(need.weights, shape[0] * shape[1])
    others = min(factors - 1, workers - 1, need.inputs)  # beside the quantized network's
    working = workers * each + held + more + others * ahead
    memory = _CONDUCTOR_BYTES + max(working, need.looking_up)
    return Resources(workers, apart, held, factors, memory, need.disk)


def is_worth_processes(weights: int, tokens: int) -> bool:
    """Whether calibrating so many weights takes so long that processes save more than they cost."""
    return weights * tokens >= _WORTH_PROCESSES


def threads_of_passes(
    model: Model, machine: Machine, tokens: int, *, layers: int = 2
) -> int | None:
    """How many threads may each run so many tokens through a layer that is in memory.

    layers: that are in memory, the next one among them. Those of the machine where no memory is
    given. Raises PlanError where it is too little for one.
    """
    if machine.max_memory is None:
        return machine.threads
    inside = [t for t in model.tensors.values() if layer_prefix(t.name)]
    sizes = [sum(t.size for t in inside if layer_prefix(t.name) == p) for p in _layers(inside)]
    layer, n_embd = layers * 4 * max(sizes, default=0), read_graph(model).n_embd
    widest = max((t.n_in for t in inside), default=n_embd)
    each = 4 * tokens * (_STREAMS * n_embd + _INNER * widest) + _SHORT_SCORES_BYTES
    free = machine.max_memory - _PLANNING_BYTES - layer
    if free < each:
        raise PlanError(
            f"--max-memory {machine.max_memory >> 20:,} MiB is too little to run a text through "
            f"this model: one thread needs {-(-(_PLANNING_BYTES + layer + each) >> 20):,} MiB; "
            "--effort fast needs no text"
        )
    return min(machine.threads or default_threads(), free // each)


def _layers(tensors: Iterable[Tensor]) -> set[str]:
    return {layer_prefix(t.name) for t in tensors}


@dataclass(frozen=True)
class _Need:
    """What a model and a text want: bytes of one worker's pieces, of all held, on disk.

    inputs: of a layer, at most, of which second moments are factored ahead.
    """

    weights: int
    passing: int
    held: int
    rounding: int
    factoring: int
    factoring_ahead: int
    looking_up: int
    inputs: int
    disk: int

    @staticmethod
    def of(model: Model, types: Mapping[str, str], shape: tuple[int, int]) -> "_Need":
        graph, n_tokens = read_graph(model), shape[0] * shape[1]
        n_embd = graph.n_embd
        names = [n for n in types if n in model.tensors and not is_float(types[n])]
        rounded = [model.tensors[n] for n in names]
        inside = [t for n, t in model.tensors.items() if layer_prefix(n) and len(t.shape) > 1]
        n_in = max((t.n_in for t in rounded), default=n_embd)
        chunk = max(min(SIZES.tokens, n_tokens), shape[1])
        layers = max(1, len(_layers(inside)))
        inputs, ahead = _inputs(inside), list(filter(None, map(_ahead, _by_layer(rounded))))
        widest = max((max(t.shape[-2:]) for t in inside), default=n_embd)
        widest = max(widest, _chosen_width(inside, graph.routing.n_used))
        scores = score_bytes(chunk // shape[1], graph.n_head, shape[1])
        read = n_embd + sum(n * min(e, _EXPERTS) for n, e, _ in inputs) // layers
        widths = 6 * n_embd + 2 * widest + _arrays_of_inputs(model) * read
        moments = sum(_moments(n, e, n_tokens) for n, e, _ in inputs) // layers
        table = max((model.tensors[n].size for n in (EMBEDDING, HEAD) if n in names), default=0)
        largest = max((sum(t.size for t in inside) // layers, 1))
        weights = sum(t.size for t in inside)
        return _Need(
            weights,
            4 * chunk * (_STREAMS * n_embd + _INNER * widest) + _SCORES * scores,
            4 * n_tokens * (widest + 4 * n_embd) if _may_wait(model, inputs) else 0,
            4 * max((_rounding(*each) for each in _inputs(rounded)), default=0),
            _FACTORING * n_in * n_in,
            _FACTORING * max(map(max, ahead), default=0) ** 2,
            4 * _LOOKED_UP * min(n_tokens, max(SIZES.looked_up, chunk)) * n_embd,
            max(map(len, ahead), default=0),
            4 * (2 * SIZES.slots * largest + 2 * table + n_tokens * widths + moments),
        )


def _inputs(matrices: list[Tensor]) -> list[tuple[int, int, int]]:
    """How wide inputs of these matrices are, how many experts have their own, rows of each of them.

    Matrices that read the same one are alike in their names and shapes.
    """
    readers: dict[tuple[int, str, bool, bool, bool], list[Tensor]] = defaultdict(list)
    for t in matrices:
        alike = "attn" in t.name, "output" in t.name, t.shape[-2] > t.n_in
        readers[t.n_in, layer_prefix(t.name), *alike].append(t)
    return [
        (n_in, max(t.n_rows // t.shape[-2] for t in found), sum(t.shape[-2] for t in found))
        for (n_in, *_), found in readers.items()
    ]


def _by_layer(tensors: list[Tensor]) -> list[list[Tensor]]:
    layers: dict[str, list[Tensor]] = defaultdict(list)
    for t in tensors:
        layers[layer_prefix(t.name)].append(t)
    return list(layers.values())


def _ahead(layer: list[Tensor]) -> list[int]:
    """How wide the inputs are whose moments are factored ahead, every expert's its own.

    The last matrix that adds to the stream is not among them; without experts it reads the widest.
    """
    inputs = _inputs(layer)
    widths = sorted(n_in for n_in, experts, _ in inputs for _ in range(experts))
    return widths if any(experts > 1 for _, experts, _ in inputs) else widths[:-1]


def _may_wait(model: Model, inputs: list[tuple[int, int, int]]) -> bool:
    """Whether a pass may have to wait inside of a layer: see `Bench.waits`."""
    return _has_post_norms(model) or any(experts > 1 for _, experts, _ in inputs)


def _has_post_norms(model: Model) -> bool:
    return any("post" in name and "norm" in name for name in model.tensors)


def _rounding(n_in: int, experts: int, rows: int) -> int:
    """Numbers that rounding a piece of the matrices takes that share their inputs."""
    piece = -(-rows // SIZES.count(rows, rows * experts))
    return (_ROUNDING * piece + _PANELS) * n_in


def _chosen_width(inside: list[Tensor], n_used: int) -> int:
    """Numbers of a token in the inputs of all experts that see it; these are there together."""
    widths: dict[str, set[int]] = defaultdict(set)
    for t in inside:
        if t.n_rows > t.shape[-2]:
            widths[layer_prefix(t.name)].add(t.n_in)
    return max((n_used * sum(found) for found in widths.values()), default=0)


def _arrays_of_inputs(model: Model) -> int:
    """How many arrays as wide as the inputs of a layer there are: with norms after them, aims."""
    return SIZES.slots + 1 + _has_post_norms(model)


def _moments(n_in: int, experts: int, n_tokens: int) -> int:
    """Numbers of second moments, of products with what is aimed at, and of factors."""
    square = n_in * n_in
    summed = max(square, min(n_tokens // SIZES.run * square, SIZES.summed))
    sums = 2 * (summed if experts == 1 else SIZES.slots * experts * square)
    return sums + SIZES.slots * experts * (3 * square + _PREPARED * n_in)
