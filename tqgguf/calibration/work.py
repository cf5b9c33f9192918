"""The pieces of a calibration, for whoever does them: all that they need is on the desk.

Names on the desk: `w.SLOT.NAME` a matrix as it was, `q.SLOT.NAME` as it became, `b.NAME` its bytes;
`o.SLOT.I` and `s.SLOT.I` the original's and the quantized network's stream before a layer, tokens
of chunk I, `a.SLOT.K.I` what the layer's step number K aims at, empty if at nothing (see
`original.through_original`). Layers take turns in two slots. Of a layer's step number K: `x.K.T`
what goes into its matrices, columns of tile T, of all tokens; `x.K.E.T.I` where every expert E has
inputs of its own, chunk I's. `d.K.T` what of its aim is left to its matrices. `m.K.E` and `hd.K`
the means of x x^T and x d^T over all tokens, in runs that are to be added up (of experts first
`u.K.E`, which become `m.K.E` blended with `all.K`); `h.K.E` the sum of the runs of `m.K.E`,
`v.K.E` the factor of the damped `h.K.E`, `v.PART.K.E` what goes with it, and `v.added.K.E` what was
added to `h.K.E` and how columns are ordered.
`scales.SLOT.NAME`: what each of the matrices of a tensor is divided by before it is encoded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from tqgguf.calibration.bench import AnyDesk, Bench, Weights, context
from tqgguf.calibration.original import through_original
from tqgguf.formats import FORMATS
from tqgguf.formats import round_rows as round_rows_of
from tqgguf.kernels import feedback
from tqgguf.kernels.arrays import like, namespace, to_numpy
from tqgguf.kernels.dtypes import F32
from tqgguf.kernels.feedback import Moments
from tqgguf.kernels.greedy import Factor
from tqgguf.models import Tensor
from tqgguf.network import forward
from tqgguf.network.forward import Layer, Projection
from tqgguf.network.layer import rows as rows_of
from tqgguf.network.ops import Array
from tqgguf.output.scales import per_row

_PARTS = "inverses", "asked", "pushes", "turned", "visited"
_FACTOR = "v", *(f"v.{part}" for part in _PARTS)  # on the desk, the arrays of a factor
_COPIED = 1 << 22  # weights that are put on the desk at a time


def put_weights(desk: AnyDesk, name: str, tensor: Tensor) -> None:
    """Put a tensor's weights on the desk, some rows at a time."""
    step, n_rows = max(1, _COPIED // tensor.n_in), tensor.n_rows
    parts = (tensor.rows(at, min(at + step, n_rows)) for at in range(0, n_rows, step))
    desk.put_parts(name, tensor.shape, parts)


@dataclass(frozen=True)
class Reached:
    """The step of a layer that a chunk of tokens has come to, and how many are in its inputs.

    shared: whether all of its tokens go into all of its matrices. aims: whether these make up for
    drift, and streams: whether their product is added to the stream.
    """

    layer: int
    matrices: tuple[str, ...]
    counts: tuple[int, ...]
    shared: bool
    aims: bool
    streams: bool


@dataclass
class _Pass:
    """A chunk on its way through the quantized layer, after so many steps."""

    steps: int
    layer: Layer
    weights: Weights


_held: dict[tuple[AnyDesk, int, int], _Pass] = {}  # of this process, by desk, layer and chunk


def advance(bench: Bench, stage: int, chunk: int, following: Bench | None = None) -> Reached | None:
    """Bring a chunk to the step number `stage` of a layer, and put its inputs on the desk.

    Where the layer has ended the stream after it is on the desk, and the chunk goes on to the first
    step of the layer that follows; None if that is not known. A pass goes on from where this
    process holds it, or else from the layer's begin.
    """
    if stage == 0 and not bench.aims:
        put_aims(bench, chunk)
    key = bench.desk, bench.layer, chunk
    going = _held.pop(key, None)
    if going is None or going.steps != stage:
        going = _begin(bench, chunk, stage)
    going.weights.bench = bench
    try:
        step = next(going.layer)
    except StopIteration as end:
        bench.desk.put(f"s.{(bench.layer + 1) % 2}.{chunk}", end.value)
        bench.desk.drop(f"s.{bench.layer % 2}.{chunk}")
        return advance(following, 0, chunk) if following else None
    going.steps += 1
    if bench.holds:
        _held[key] = going
    return _reached(bench, stage, chunk, step)


def pass_original(bench: Bench, chunk: int) -> None:
    """Put on the desk the original's stream after a layer."""
    after, _ = through_original(bench, chunk)
    bench.desk.put(f"o.{(bench.layer + 1) % 2}.{chunk}", after)


def put_aims(bench: Bench, chunk: int) -> None:
    """Put on the desk the original's stream after a layer, and what the layer's steps aim at."""
    after, aims = through_original(bench, chunk)
    bench.desk.put(f"o.{(bench.layer + 1) % 2}.{chunk}", after)
    bench.desk.drop(f"o.{bench.layer % 2}.{chunk}")
    for stage, aim in enumerate(aims):
        bench.desk.put(f"a.{bench.layer % 2}.{stage}.{chunk}", rows_of(aim))


def put_rows(desk: AnyDesk, name: str, x: Array, edges: Sequence[int], chunk: int) -> None:
    """Put a chunk's rows, (n, n_in), on the desk, in `NAME.T` the columns of tile T."""
    for t, (begin, end) in enumerate(pairwise(desk.sizes.edges(x.shape[1]))):
        desk.put_rows(f"{name}.{t}", x[:, begin:end], edges[chunk], edges[-1])


def sum_products(
    desk: AnyDesk,
    out: str,
    left: str,
    right: str,
    tiles: tuple[int, int],
    parts: Sequence[str],
    tokens: int,
    number: int,
    run: tuple[int, int],
) -> bool:
    """One tile of the mean of x y^T over all tokens, summed up part after part; is it finite?

    Of a single part only a run of tokens counts, the sum number `number` of the output.
    """
    total: F32 | None = None
    here = slice(*run) if len(parts) == 1 else slice(None)
    for part in parts:
        x = desk.get(f"{left}.{tiles[0]}{part}")[here, :]
        y = x
        if (left, tiles[0]) != (right, tiles[1]):
            y = desk.get(f"{right}.{tiles[1]}{part}")[here, :]
        product = x.T @ y
        if total is None:
            total = product
        else:
            total += product
    if total is None:
        raise AssertionError(out)
    total /= max(1, tokens)
    whole = desk.change(out)[number, ...]
    rows, columns = (
        slice(*desk.sizes.edges(n)[t : t + 2]) for n, t in zip(whole.shape, tiles, strict=True)
    )
    whole[rows, columns] = total
    if left == right and tiles[0] != tiles[1]:
        whole[columns, rows] = total.T
    xp = namespace(total)
    return bool(xp.all(xp.isfinite(total)))


def added_up(runs: F32) -> F32:
    """A sum of runs of tokens, (n_runs, ...) -> (...)."""
    total: F32 = runs[0, ...] if runs.shape[0] == 1 else namespace(runs).sum(runs, axis=0)
    return total


def factor(desk: AnyDesk, name: str, damping: float) -> bool:
    """Put second moments on the desk, the factor of the damped ones, how much was added to them.

    The moments are finite, and so is the factor: True.
    """
    h = added_up(desk.get(f"m.{name}"))
    added, found = feedback.factor_in_order(h, damping=damping)
    desk.put(f"h.{name}", h)
    desk.put_object(f"v.added.{name}", (added, found.order, found.spans))
    for part, array in zip(_FACTOR, found.arrays, strict=True):
        desk.put(f"{part}.{name}", array)
    return True


def blend(desk: AnyDesk, step: int, expert: int, share: float) -> None:
    """Put an expert's moments on the desk, of which a share is those of all experts."""
    own, everything = desk.get(f"u.{step}.{expert}"), desk.get(f"all.{step}")
    blended = (1 - share) * own
    blended += share * everything
    desk.put(f"m.{step}.{expert}", blended)


@dataclass(frozen=True)
class Rows:
    """Some rows of a matrix that is to be rounded; streams: whether it adds to the stream."""

    name: str
    begin: int
    end: int
    streams: bool


def round_rows(
    desk: AnyDesk,
    step: int,
    expert: int,
    pieces: Sequence[Rows],
    type: str,
    sweeps: int,
    share: float,
) -> None:
    """Round rows that have their inputs in common, and put bytes and weights on the desk.

    share: of drift that is made up for.
    """
    parts = [rows_of(desk.get(f"w.{p.name}"))[p.begin : p.end, :] for p in pieces]
    rows = namespace(parts[0]).concat(parts)
    moments = _moments(desk, f"{step}.{expert}")
    if share > 0:
        rows = _made_up(desk, step, rows, moments, pieces, share)
    steps = _steps(desk, pieces, rows) if FORMATS[type].is_scaled else None
    if steps is not None:
        rows /= steps
    data, values = round_rows_of(type, rows, moments, sweeps=sweeps, run=desk.device.run)
    if steps is not None:
        values *= steps
    at = 0
    for p in pieces:
        size = p.end - p.begin
        desk.change(f"b.{p.name}")[p.begin : p.end, :] = data[at : at + size, :]
        rows_of(desk.change(f"q.{p.name}"))[p.begin : p.end, :] = values[at : at + size, :]
        at += size


def _moments(desk: AnyDesk, name: str) -> Moments:
    added, order, spans = desk.get_object(f"v.added.{name}")
    h, *arrays = (desk.get(f"{part}.{name}") for part in ("h", *_FACTOR))
    return Moments(h, Factor(order, spans, *arrays), added)


def _steps(desk: AnyDesk, pieces: Sequence[Rows], rows: Array) -> Array:
    """The scale of the whole matrix, for each of the rows of all pieces: (n_rows, 1)."""
    found = []
    for p in pieces:
        scales = to_numpy(desk.get(f"scales.{p.name}"))
        n_rows = rows_of(desk.get(f"w.{p.name}")).shape[0]
        found.append(per_row(scales, p.begin, p.end, n_rows))
    steps: Array = like(np.concatenate(found), rows)
    return steps


def _made_up(
    desk: AnyDesk, step: int, rows: F32, moments: Moments, pieces: Sequence[Rows], share: float
) -> F32:
    """Rows moved by a share towards where their product makes up for drift.

    That is the least-squares solution of w'^T x = d, drawn to w: (H + added) w' = E[x d^T] + added
    w. What d is of a matrix that does not add to the stream is the original's x, so E[x d^T] w.
    """
    hd = desk.get(f"hd.{step}")
    if any(p.streams for p in pieces):
        parts = [added_up(hd[:, :, p.begin : p.end]) for p in pieces]
        wanted = namespace(hd).concat(parts, axis=1)
    else:
        wanted = added_up(hd) @ rows.T
    wanted += moments.added * rows.T
    made_up = moments.solve(wanted).T
    out: F32 = rows + share * (made_up - rows)
    return out


def forget(desk: AnyDesk) -> None:
    """Let go of the passes that this process holds."""
    for key in [key for key in _held if key[0] == desk]:
        del _held[key]


def _begin(bench: Bench, chunk: int, steps: int) -> _Pass:
    stream = bench.desk.get(f"s.{bench.layer % 2}.{chunk}")
    weights = Weights(bench, original=False)
    layer = forward.layer(stream, weights, context(bench), bench.layer)
    for _ in range(steps):
        next(layer)
    return _Pass(steps, layer, weights)


def _reached(bench: Bench, stage: int, chunk: int, step: Projection) -> Reached:
    """Put on the desk what rounding a step's matrices takes."""
    shared, streams = len(step.inputs) == 1, step.stream is not None
    name = f"a.{bench.layer % 2}.{stage}.{chunk}"
    aim = bench.desk.get(name)
    bench.desk.drop(name)
    aims = 0 not in aim.shape
    if any(f"{matrix}.weight" in bench.todo for matrix in step.matrices):
        if shared:
            put_rows(bench.desk, f"x.{stage}", step.inputs[0], bench.edges, chunk)
        if aims:
            wanted = aim if step.stream is None else _left(bench, step.matrices, aim - step.stream)
            put_rows(bench.desk, f"d.{stage}", wanted, bench.edges, chunk)
        for e, x in enumerate(() if shared else step.inputs):
            for t, (begin, end) in enumerate(pairwise(bench.desk.sizes.edges(x.shape[1]))):
                bench.desk.put(f"x.{stage}.{e}.{t}.{chunk}", x[:, begin:end])
    counts = tuple(x.shape[0] for x in step.inputs)
    return Reached(bench.layer, step.matrices, counts, shared, aims, streams)


def _left(bench: Bench, matrices: Sequence[str], wanted: Array) -> Array:
    """What a matrix has to add to the stream, its bias left out."""
    for bias in (f"{matrix}.bias" for matrix in matrices):
        if bias in bench.tensors:
            wanted -= bench.desk.get(f"w.{bench.layer % 2}.{bias}")
    return wanted
