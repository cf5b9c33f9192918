"""The pieces of a calibration, for whoever does them: all that they need is on the desk.

Names on the desk: `w.SLOT.NAME` a matrix as it was, `q.SLOT.NAME` as it became, `b.NAME` its bytes;
`o.SLOT.I` and `s.SLOT.I` the original's and the quantized network's stream before a layer, tokens
of chunk I. Layers take turns in two slots. Of the step number K of a layer: `x.K.T` what
goes into its matrices, columns of tile T, of all tokens; `x.K.E.T.I` where every expert E has
inputs of its own, chunk I's. `d.K.T` what is to be made up for: how far the original's input is
from that, or, of a matrix whose product is added to the stream, how far the original's stream is
after that from the quantized network's, were the matrix left as it is. `h.K.E` and `hd.K` the means
of x x^T and x d^T over all tokens (of experts first `u.K.E`, which become `h.K.E` blended with
`all.K`); `v.K.E` the factor of the damped `h.K.E`, `r.K` that of h with a ridge; `v.inverses.K.E`
and `r.inverses.K` what `feedback.inverses` makes of them.
`scales.SLOT.NAME`: what each of the matrices of a tensor is divided by before it is encoded.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import numpy as np

from tqgguf.calibration.desk import Desk
from tqgguf.calibration.device_desk import DeviceDesk
from tqgguf.calibration.kept import Kept
from tqgguf.calibration.passes import Computed, Noted, Pass
from tqgguf.formats import FORMATS
from tqgguf.formats import round_rows as round_rows_of
from tqgguf.kernels import feedback
from tqgguf.kernels.arrays import like, namespace, to_numpy
from tqgguf.kernels.dtypes import F32
from tqgguf.models import Tensor
from tqgguf.models.roles import layer_prefix
from tqgguf.network import forward
from tqgguf.network.forward import Context, Projection
from tqgguf.network.layer import rows as rows_of
from tqgguf.network.ops import Array
from tqgguf.output.scales import per_row

CONTEXT = "context"  # on the desk
_COPIED = 1 << 22  # weights that are put on the desk at a time

AnyDesk = Desk | DeviceDesk


def on_desk(name: str) -> str:
    """A tensor's name on the desk: that of its layer's slot, and its own."""
    layer = layer_prefix(name)
    if not layer:
        return name
    return f"{int(layer.split('.')[1]) % 2}.{name.removeprefix(layer)}"


def put_weights(desk: AnyDesk, name: str, tensor: Tensor) -> None:
    """Put a tensor's weights on the desk, some rows at a time."""
    step, n_rows = max(1, _COPIED // tensor.n_in), tensor.n_rows
    parts = (tensor.rows(at, min(at + step, n_rows)) for at in range(0, n_rows, step))
    desk.put_parts(name, tensor.shape, parts)


@dataclass(frozen=True)
class Bench:
    """What work on a layer needs to know.

    edges: of the chunks in all tokens. kept: where what the original computes is kept. holds:
    whether passes wait, with all they have computed, for the rest of their layer's matrices. layer:
    its number. tensors: their names without "blk.N.". todo: those that are to be rounded. done:
    those that are on the desk rounded.
    """

    desk: AnyDesk
    edges: tuple[int, ...]
    kept: Kept | None
    holds: bool
    layer: int
    tensors: tuple[str, ...]
    todo: frozenset[str]
    done: frozenset[str] = frozenset()


class Weights(Mapping[str, Any]):
    """A layer's tensors on the desk, each as it is by now."""

    def __init__(self, bench: Bench, *, original: bool) -> None:
        self.bench, self.original = bench, original

    def __getitem__(self, name: str) -> Any:
        """The tensor. Raises KeyError."""
        if name not in self.bench.tensors:
            raise KeyError(name)
        kind = "q" if name in self.bench.done and not self.original else "w"
        return self.bench.desk.get(f"{kind}.{self.bench.layer % 2}.{name}")

    def __contains__(self, name: object) -> bool:
        return name in self.bench.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.bench.tensors)

    def __len__(self) -> int:
        return len(self.bench.tensors)


@dataclass(frozen=True)
class Reached:
    """The step that a chunk of tokens has come to, and how many tokens are in its inputs."""

    matrices: tuple[str, ...]
    counts: tuple[int, ...]
    drifts: bool
    streams: bool


@dataclass
class _Pair:
    """The passes of one chunk through the original and through the quantized layer."""

    stage: int
    original: Pass
    quantized: Pass
    weights: Weights  # of the quantized layer


_held: dict[tuple[AnyDesk, int, int], _Pair] = {}  # of this process, by desk, layer and chunk


def advance(bench: Bench, stage: int, chunk: int) -> Reached | None:
    """Bring a chunk to the step number `stage` of a layer, and put its inputs on the desk.

    Returns None when the layer has ended and the streams after it are on the desk. A pass goes on
    from where this process holds it, or else from the layer's begin.
    """
    key = bench.desk, bench.layer, chunk
    pair = _held.pop(key, None)
    if pair is None or pair.stage != stage:
        pair = _begin(bench, chunk)
        pair.original.skip(stage)
        pair.quantized.skip(stage)
    pair.weights.bench = bench
    original, quantized = pair.original.advance(), pair.quantized.advance()
    pair.stage = stage + 1
    if original is None or quantized is None:
        after = (bench.layer + 1) % 2
        bench.desk.put(f"o.{after}.{chunk}", pair.original.result)
        bench.desk.put(f"s.{after}.{chunk}", pair.quantized.result)
        return None
    if bench.holds:
        _held[key] = pair
    return _reached(bench, stage, chunk, original, quantized)


def pass_original(bench: Bench, chunk: int) -> None:
    """Put the original's stream after a layer on the desk."""
    going = _original(bench, chunk)
    while going.advance():
        pass
    bench.desk.put(f"o.{(bench.layer + 1) % 2}.{chunk}", going.result)


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
) -> bool:
    """One tile of the mean of x y^T over all tokens, summed up part after part; is it finite?"""
    total: F32 | None = None
    for part in parts:
        x = desk.get(f"{left}.{tiles[0]}{part}")
        y = x if (left, tiles[0]) == (right, tiles[1]) else desk.get(f"{right}.{tiles[1]}{part}")
        product = x.T @ y
        if total is None:
            total = product
        else:
            total += product
    if total is None:
        raise AssertionError(out)
    total /= max(1, tokens)
    whole = desk.change(out)
    rows, columns = (
        slice(*desk.sizes.edges(n)[t : t + 2]) for n, t in zip(whole.shape, tiles, strict=True)
    )
    whole[rows, columns] = total
    if left == right and tiles[0] != tiles[1]:
        whole[columns, rows] = total.T
    xp = namespace(total)
    return bool(xp.all(xp.isfinite(total)))


def factor(desk: AnyDesk, moments: str, out: str, name: str, damping: float) -> None:
    """Put the factor of damped second moments on the desk, and how much was added to them."""
    added, v = feedback.factor(desk.get(moments), damping=damping)
    desk.put_object(f"{out}.added.{name}", added)
    desk.put(f"{out}.{name}", v)
    desk.put(f"{out}.inverses.{name}", feedback.inverses(v))


def blend(desk: AnyDesk, step: int, expert: int, share: float) -> None:
    """Put an expert's moments on the desk, of which a share is those of all experts."""
    own, everything = desk.get(f"u.{step}.{expert}"), desk.get(f"all.{step}")
    blended = (1 - share) * own
    blended += share * everything
    desk.put(f"h.{step}.{expert}", blended)


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

    share: of the drift of inputs and stream that is made up for.
    """
    parts = [rows_of(desk.get(f"w.{p.name}"))[p.begin : p.end, :] for p in pieces]
    rows = namespace(parts[0]).concat(parts)
    if share > 0:
        rows += share * _correction(desk, step, rows, pieces)
    h, v, inverses = (desk.get(f"{name}.{step}.{expert}") for name in ("h", "v", "v.inverses"))
    moments = feedback.Moments(h, v, inverses, desk.get_object(f"v.added.{step}.{expert}"))
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


def _steps(desk: AnyDesk, pieces: Sequence[Rows], rows: Array) -> Array:
    """The scale of the whole matrix, for each of the rows of all pieces: (n_rows, 1)."""
    found = []
    for p in pieces:
        scales = to_numpy(desk.get(f"scales.{p.name}"))
        n_rows = rows_of(desk.get(f"w.{p.name}")).shape[0]
        found.append(per_row(scales, p.begin, p.end, n_rows))
    steps: Array = like(np.concatenate(found), rows)
    return steps


def _correction(desk: AnyDesk, step: int, rows: F32, pieces: Sequence[Rows]) -> F32:
    """What the weights have to change by, or the drift of the inputs would change the output.

    The least-squares solution of x^T c = dx^T w + ds: (H + ridge) c = E[x dx^T] w + E[x ds].
    """
    hd = desk.get(f"hd.{step}")
    if any(p.streams for p in pieces):
        wanted = namespace(hd).concat([hd[:, p.begin : p.end] for p in pieces], axis=1)
    else:
        wanted = hd @ rows.T
    v, inverses = (desk.get(f"{name}.{step}") for name in ("r", "r.inverses"))
    solved: F32 = feedback.solve(v, inverses, wanted).T
    return solved


def forget(desk: AnyDesk) -> None:
    """Let go of the passes that this process holds."""
    for key in [key for key in _held if key[0] == desk]:
        del _held[key]


def _begin(bench: Bench, chunk: int) -> _Pair:
    stream = bench.desk.get(f"s.{bench.layer % 2}.{chunk}")
    weights = Weights(bench, original=False)
    layer = forward.layer(stream, weights, _context(bench), bench.layer)
    return _Pair(0, _original(bench, chunk), Computed(layer), weights)


def _original(bench: Bench, chunk: int) -> Pass:
    """A pass of a chunk through the original's layer, from its state before it."""

    def compute() -> Computed:
        stream = bench.desk.get(f"o.{bench.layer % 2}.{chunk}")
        weights = Weights(bench, original=True)
        return Computed(forward.layer(stream, weights, _context(bench), bench.layer))

    return Noted(bench.kept, f"{bench.layer}.{chunk}", compute) if bench.kept else compute()


def _context(bench: Bench) -> Context:
    return cast("Context", bench.desk.get_object(CONTEXT))


def _reached(
    bench: Bench, stage: int, chunk: int, original: Projection, quantized: Projection
) -> Reached:
    """Put on the desk what rounding a step's matrices takes."""
    inputs, drifts = quantized.inputs, len(quantized.inputs) == 1
    streams = drifts and original.stream is not None and quantized.stream is not None
    if any(f"{matrix}.weight" in bench.todo for matrix in quantized.matrices):
        if drifts:
            put_rows(bench.desk, f"x.{stage}", inputs[0], bench.edges, chunk)
            drift = _drift(bench, original, quantized)
            put_rows(bench.desk, f"d.{stage}", drift, bench.edges, chunk)
        for e, x in enumerate(() if drifts else inputs):
            for t, (begin, end) in enumerate(pairwise(bench.desk.sizes.edges(x.shape[1]))):
                bench.desk.put(f"x.{stage}.{e}.{t}.{chunk}", x[:, begin:end])
    return Reached(quantized.matrices, tuple(x.shape[0] for x in inputs), drifts, streams)


def _drift(bench: Bench, original: Projection, quantized: Projection) -> Array:
    """What a step's matrices have to make up for, of these tokens: see `d.K.T`."""
    drift: Array = original.inputs[0] - quantized.inputs[0]
    if original.stream is None or quantized.stream is None:
        return drift
    (matrix,) = quantized.matrices
    weights = bench.desk.get(f"w.{bench.layer % 2}.{matrix}.weight")
    out: Array = drift @ weights.T
    out += original.stream
    out -= quantized.stream
    return out
