"""How long a calibration takes: its arithmetic at the speed that small pieces of it have here.

Rounding is timed on a small matrix of each type, products on one of the size of a tile. Pieces that
are worked on at once are counted, for a step's few pieces leave most of many workers idle.
"""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, pairwise

import numpy as np

from tqgguf.calibration.desk import SIZES
from tqgguf.calibration.kept import STATISTICS
from tqgguf.calibration.resources import resources
from tqgguf.calibration.settings import Feedback, sweeps_of
from tqgguf.formats import FORMATS, is_float
from tqgguf.kernels import feedback
from tqgguf.kernels.dtypes import F32
from tqgguf.machine.devices import find_device
from tqgguf.machine.machine import Machine
from tqgguf.machine.threads import single_threaded_blas
from tqgguf.models import Model, Tensor
from tqgguf.models.roles import layer_prefix
from tqgguf.network.graph import read_graph
from tqgguf.rotation.ends import EMBEDDING, HEAD

_PASS = 1.6  # times the products of both passes: attention, norms, reading and writing
_SPREAD = 0.8  # the power of the number of workers by which they are faster than one
_MOMENTS = 3.0  # products of n_in^2 for each token: x x^T, x d^T
_BARRIERS = 17  # of a layer: hand-overs to each worker that the quantized network waits for
_HAND_OVER = 1e-4  # seconds that a task takes to a worker and back (scripts/bench_crew.py)
_RUNS = 3
_PROBE = 256  # inputs of the matrix that is rounded to see how long it takes, and its rows at most


@dataclass(frozen=True)
class _Step:
    """Matrices that read the same input: rows of each of `copies` experts, weights (rows, n_in)."""

    layer: str
    rows: int
    copies: int
    n_in: int
    types: tuple[str, ...]

    @property
    def weights(self) -> int:
        """Of all its matrices."""
        return self.rows * self.copies * self.n_in


def expectation(
    model: Model, types: Mapping[str, str], shape: tuple[int, int], machine: Machine = Machine()
) -> str:
    """A line that says what calibration on (n_seq, n_tokens) tokens will take here."""
    found = resources(model, types, shape, machine)
    time = ""
    if find_device(machine.device).is_cpu:
        expected = seconds(model, types, shape, workers=found.workers)
        time = f"about {_in_words(expected)} with {found.workers} at work, "
    return (
        f"calibration on {shape[0] * shape[1]:,} tokens takes {time}{found.memory / 1e9:.1f} GB of "
        f"memory and {found.disk / 1e9:.1f} GB in the cache's folder"
    )


def _in_words(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{max(1, round(seconds))} s"


def seconds(
    model: Model, types: Mapping[str, str], shape: tuple[int, int], *, workers: int
) -> float:
    """How long calibrating on (n_seq, n_tokens) tokens takes with so many at work."""
    steps, n_tokens = _steps(model, types), shape[0] * shape[1]
    chunks = -(-n_tokens // max(SIZES.tokens, shape[1]))
    flops = sum(_PASS * 4 * s.weights for s in steps if s.layer) * n_tokens
    passing = flops / _speed() / math.pow(min(workers, chunks), _SPREAD)
    sums = sum(_MOMENTS * s.n_in**2 * s.copies for s in steps) * n_tokens
    moments = sums / _speed() / math.pow(workers, _SPREAD)
    layers = len({s.layer for s in steps if s.layer})
    waiting = _BARRIERS * _HAND_OVER * layers * workers if workers > 1 else 0.0
    rounding = sum(map(_rounding, steps)) / math.pow(workers, _SPREAD)
    return passing + moments + waiting + rounding


def shares(model: Model, types: Mapping[str, str], shape: tuple[int, int]) -> dict[str, int]:
    """The weights of all that is rounded, shared out to its matrices by the time they take.

    A tied table takes the original's pass, which the others take anew where it cannot be kept.
    """
    rounded = {n: model.tensors[n] for n, type in types.items() if _is_rounded(model, n, type)}
    inside = {n: t.size for n, t in rounded.items() if layer_prefix(n)}
    passing = 2 * _PASS * shape[0] * shape[1] / _speed()
    is_tied = EMBEDDING in rounded and HEAD not in model.tensors
    passes = 2 - (_kept_share(model, shape) if is_tied else 0)
    costs = {
        name: _rate(types[name]) * t.size + passes * passing * inside.get(name, 0)
        for name, t in rounded.items()
    }
    if is_tied:
        costs[EMBEDDING] += passing * sum(inside.values())
    scale = sum(t.size for t in rounded.values()) / max(sum(costs.values()), 1e-30)
    edges = [0, *(round(at * scale) for at in accumulate(costs.values()))]
    return {name: b - a for name, (a, b) in zip(costs, pairwise(edges), strict=True)}


def _kept_share(model: Model, shape: tuple[int, int]) -> float:
    """How much is kept of the original's streams after its layers."""
    graph = read_graph(model)
    return min(1.0, STATISTICS / (4 * shape[0] * shape[1] * graph.n_embd * graph.n_layer))


def _is_rounded(model: Model, name: str, type: str) -> bool:
    return name in model.tensors and not is_float(type)


def _steps(model: Model, types: Mapping[str, str]) -> list[_Step]:
    """What is rounded, by what it reads: those that do so in a layer are of one width and kind."""
    groups: dict[tuple[str, int, bool], list[Tensor]] = defaultdict(list)
    for name, type in types.items():
        if _is_rounded(model, name, type):
            t = model.tensors[name]
            groups[layer_prefix(name), t.n_in, t.shape[-2] > t.n_in].append(t)
    return [_step(layer, tensors, types) for (layer, _, _), tensors in groups.items()]


def _step(layer: str, tensors: Sequence[Tensor], types: Mapping[str, str]) -> _Step:
    copies = max(t.n_rows // t.shape[-2] for t in tensors)
    rows = sum(t.n_rows for t in tensors) // copies
    return _Step(layer, rows, copies, tensors[0].n_in, tuple({types[t.name] for t in tensors}))


def _rounding(step: _Step) -> float:
    """Seconds that it takes one worker to round a step's matrices."""
    pieces = SIZES.count(step.rows, step.rows * step.copies)
    rows = min(_PROBE, -(-step.rows // pieces))
    rate = max(_rate(type, rows) for type in step.types) + 8 * step.n_in / _speed()
    return step.weights * rate


@cache
def _rate(type: str, rows: int = _PROBE) -> float:
    """Seconds for a weight in a piece of so many rows, its share of H's products left out."""
    x = np.random.default_rng(0).standard_normal((_PROBE, rows)).astype(np.float32)
    moments = feedback.factored(np.eye(_PROBE, dtype=np.float32))
    encode, sweeps = FORMATS[type].encode_matrix, sweeps_of(type, Feedback().sweeps)
    return _timed(lambda: encode(x, moments, sweeps=sweeps)) / x.size


@cache
def _speed() -> float:
    """Floating point operations a second of one core, in a product of the size of a tile."""
    x: F32 = np.ones((SIZES.tile, SIZES.tile), np.float32)
    return 2 * SIZES.tile**3 / _timed(lambda: x @ x)


def _timed(work: Callable[[], object]) -> float:
    """Seconds of the fastest of a few runs, on a core of one's own: the first finds all cold."""
    took = []
    with single_threaded_blas():
        for _ in range(_RUNS):
            began = time.thread_time()
            work()
            took.append(time.thread_time() - began)
    return max(min(took), 1e-6)
