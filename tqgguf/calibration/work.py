"""The pieces of a calibration, for whoever does them: all that they need is on the desk.

Names on the desk: `w.SLOT.NAME` a matrix as it was, `q.SLOT.NAME` as it became, `b.SLOT.NAME` its
bytes; `o.TURN.I` and `s.TURN.I` the original's and the quantized network's stream before a layer,
tokens of chunk I, `y.TURN.I` what goes into the layer's last product and `t.TURN.I` what that is
added to, `a.SLOT.K.I` what the layer's step number K aims at (see `original.through_original`).
Layers have slots in turn. What is known of the inputs of some matrices has a key, `SLOT.K` for the
original's and `q.K` for the quantized network's: `x.KEY.T` what goes into the matrices, columns of
tile T, of all tokens; `x.KEY.E.T.I` where every expert E has inputs of its own, chunk I's.
`d.KEY.T` what of its aim is left to its matrices. `m.KEY.E` and `hd.KEY` the means of x x^T and
x d^T over all tokens, in runs that are to be added up (of experts first `u.KEY.E`, which become
`m.KEY.E` blended with `all.KEY`); `h.KEY.E` the sum of the runs of `m.KEY.E`, `v.KEY.E` the factor
of the damped `h.KEY.E`, `v.PART.KEY.E` what goes with it, and `v.added.KEY.E` what was added to
`h.KEY.E` and how columns are ordered. `scales.SLOT.NAME`: what each of the matrices of a tensor is
divided by before it is encoded.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from tqgguf.calibration.bench import AnyDesk, Bench, Step, Weights, context
from tqgguf.calibration.kept import Kept
from tqgguf.calibration.original import Passed, through_original
from tqgguf.formats import FORMATS
from tqgguf.formats import round_rows as round_rows_of
from tqgguf.kernels import feedback
from tqgguf.kernels.arrays import like, namespace, to_numpy
from tqgguf.kernels.dtypes import F32
from tqgguf.kernels.feedback import Moments
from tqgguf.kernels.greedy import Factor
from tqgguf.network import forward
from tqgguf.network.forward import Layer, Projection
from tqgguf.network.layer import linear
from tqgguf.network.layer import rows as rows_of
from tqgguf.network.ops import Array
from tqgguf.output.scales import per_row

_PARTS = "inverses", "asked", "pushes", "turned", "visited"
_FACTOR = "v", *(f"v.{part}" for part in _PARTS)  # on the desk, the arrays of a factor
_BLENDED = 256  # rows of second moments


@dataclass
class _Pass:
    """A chunk on its way through the quantized layer, after so many steps."""

    steps: int
    layer: Layer
    weights: Weights


_held: dict[tuple[AnyDesk, int, int], _Pass] = {}  # of this process, by desk, layer and chunk


def pass_original(bench: Bench, chunk: int) -> tuple[Step, ...]:
    """Put on the desk the original's stream after a layer, and what the layer's steps aim at.

    Where the steps are not known, they are returned, and what those read that do not aim at
    anything is on the desk as well.
    """
    desk, name = bench.desk, f"{bench.layer}.{chunk}"
    kept = bench.kept.read(name) if bench.kept else None
    passed = Passed.of(kept) if kept and bench.steps else through_original(bench, chunk)
    if bench.kept and not kept:
        bench.kept.write(name, passed.arrays())
    desk.put(f"o.{(bench.layer + 1) % 2}.{chunk}", passed.after)
    desk.drop(f"o.{bench.layer % 2}.{chunk}")
    for number, aim in enumerate(passed.aims):
        if aim is not None:
            desk.put(f"a.{bench.slot}.{number}.{chunk}", rows_of(aim))
    for step, inputs in () if bench.steps else zip(passed.steps, passed.inputs, strict=True):
        if not step.aims and not bench.todo.isdisjoint(step.weights):
            _put_inputs(bench, f"{bench.slot}.{step.number}", inputs, chunk)
    return passed.steps


def advance(
    bench: Bench, number: int, chunk: int, following: Bench | None = None
) -> tuple[int, int] | None:
    """Bring a chunk to the first step, from a number on, that aims; put its inputs on the desk.

    Returned are layer and number. Where the layer has ended the stream after it is on the desk, and
    the chunk goes on in the layer that follows; None if that is not known.
    """
    if number and bench.steps[number - 1].ends:
        after = _ended(bench, bench.steps[number - 1], chunk)
    else:
        going = _going(bench, number, chunk)
        while True:
            try:
                step = next(going.layer)
            except StopIteration as end:
                after = end.value
                break
            going.steps += 1
            if bench.steps[going.steps - 1].aims:
                return _stop(bench, chunk, going, step)
    bench.desk.put(f"s.{(bench.layer + 1) % 2}.{chunk}", after)
    bench.desk.drop(f"s.{bench.layer % 2}.{chunk}")
    return advance(following, 0, chunk) if following else None


def _going(bench: Bench, number: int, chunk: int) -> "_Pass":
    """A pass from a step on: where this process holds it, or else from the layer's begin."""
    going = _held.pop((bench.desk, bench.layer, chunk), None)
    if going is None or going.steps != number:
        going = _begin(bench, chunk, number)
    going.weights.bench = bench
    return going


def _stop(bench: Bench, chunk: int, going: "_Pass", step: Projection) -> tuple[int, int]:
    """Let a pass wait for the matrices of a step; what is left of a layer may be on the desk."""
    number = going.steps - 1
    _put_aimed(bench, number, chunk, step)
    if step.stream is not None and bench.steps[number].ends:
        bench.desk.put(f"t.{bench.layer % 2}.{chunk}", step.stream)
        bench.desk.put(f"y.{bench.layer % 2}.{chunk}", step.inputs[0])
    elif bench.holds:
        _held[bench.desk, bench.layer, chunk] = going
    return bench.layer, number


def _ended(bench: Bench, step: Step, chunk: int) -> Array:
    """The stream after a layer whose last step is done, (n_seq, n_tokens, n_embd)."""
    desk, turn = bench.desk, bench.layer % 2
    x, stream, before = (desk.get(f"{name}.{turn}.{chunk}") for name in "yts")
    for name in "yt":
        desk.drop(f"{name}.{turn}.{chunk}")
    product = linear(x, Weights(bench, original=False), step.matrices[0])
    after = (stream + product) * context(bench).graph.residual_scale
    found: Array = namespace(after).reshape(after, before.shape)
    return found


def quantized(number: int) -> str:
    """The key of what a step of the quantized network reads."""
    return f"q.{number}"


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


def sum_of(desk: AnyDesk, key: str, kept: Kept | None, entry: str) -> F32:
    """Second moments as they are kept, or those on the desk, which are kept from now on."""
    if kept is None or not entry:
        return added_up(desk.get(f"m.{key}"))
    (h,) = kept.once(entry, lambda: [added_up(desk.get(f"m.{key}"))])
    return h


def keep_sum(desk: AnyDesk, key: str, kept: Kept | None, entry: str) -> None:
    """Keep second moments that are on the desk."""
    sum_of(desk, key, kept, entry)


def take_kept(desk: AnyDesk, kept: Kept, entries: Sequence[tuple[str, str]]) -> bool:
    """Put second moments on the desk, keys and what they are kept as, if all are kept and sound.

    What is on the desk stays there, whoever makes room where they were kept.
    """
    found = [(key, kept.read(entry)) for key, entry in entries]
    for key, arrays in found:
        if arrays is None:
            return False
        desk.put(f"m.{key}", arrays[0][None])
    return True


def factor(
    desk: AnyDesk, key: str, damping: float, kept: Kept | None = None, entry: str = ""
) -> bool:
    """Put second moments on the desk, the factor of the damped ones, how much was added to them.

    kept, entry: see `sum_of`. The moments are finite, and so is the factor: True.
    """
    h = sum_of(desk, key, kept, entry)
    added, found = feedback.factor_in_order(h, damping=damping)
    desk.put(f"h.{key}", h)
    desk.put_object(f"v.added.{key}", (added, found.order, found.spans))
    for part, array in zip(_FACTOR, found.arrays, strict=True):
        desk.put(f"{part}.{key}", array)
    return True


def forget_moments(desk: AnyDesk, key: str) -> None:
    """Nobody reads second moments or their factor again."""
    for part in ("m", "h", *_FACTOR):
        desk.drop(f"{part}.{key}")


def add_experts_up(desk: AnyDesk, key: str, shares: Sequence[float]) -> None:
    """Put the moments of all experts on the desk, of which each one's are a share."""
    own = [desk.get(f"u.{key}.{e}") for e in range(len(shares))]
    everything = desk.make(f"all.{key}", own[0].shape)
    for rows in _strips(own[0]):
        everything[rows] = sum(share * h[rows] for share, h in zip(shares, own, strict=True))


def blend(desk: AnyDesk, key: str, expert: int, share: float) -> None:
    """Put an expert's moments on the desk, of which a share is those of all experts."""
    own, everything = desk.get(f"u.{key}.{expert}"), desk.get(f"all.{key}")
    blended = desk.make(f"m.{key}.{expert}", own.shape)
    for rows in _strips(own):  # all workers do this at once
        blended[rows] = (1 - share) * own[rows] + share * everything[rows]


def _strips(h: Array) -> Iterator[tuple[Any, ...]]:
    """Some rows of second moments after the others."""
    for at in range(0, h.shape[-1], _BLENDED):
        yield ..., slice(at, at + _BLENDED), slice(None)


@dataclass(frozen=True)
class Rows:
    """Some rows of a matrix that is to be rounded; streams: whether it adds to the stream."""

    name: str
    begin: int
    end: int
    streams: bool


def round_rows(
    desk: AnyDesk,
    key: str,
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
    moments = _moments(desk, f"{key}.{expert}")
    if share > 0:
        rows = _made_up(desk, key, rows, moments, pieces, share)
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


def _moments(desk: AnyDesk, key: str) -> Moments:
    added, order, spans = desk.get_object(f"v.added.{key}")
    h, *arrays = (desk.get(f"{part}.{key}") for part in ("h", *_FACTOR))
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
    desk: AnyDesk, key: str, rows: F32, moments: Moments, pieces: Sequence[Rows], share: float
) -> F32:
    """Rows moved by a share towards where their product makes up for drift.

    That is the least-squares solution of w'^T x = d, drawn to w: (H + added) w' = E[x d^T] + added
    w. What d is of a matrix that does not add to the stream is the original's x, so E[x d^T] w.
    """
    hd = desk.get(f"hd.{key}")
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
    for key in [key for key in list(_held) if key[0] == desk]:  # others of us may be at work
        _held.pop(key, None)


def _forget_the_gone() -> None:
    """Let go of passes whose desks are gone: a cluster's workers outlive a run that was stopped."""
    for desk in {desk for desk, *_ in list(_held)}:
        if desk.folder is not None and not desk.folder.exists():
            forget(desk)


def _begin(bench: Bench, chunk: int, steps: int) -> _Pass:
    _forget_the_gone()
    stream = bench.desk.get(f"s.{bench.layer % 2}.{chunk}")
    weights = Weights(bench, original=False)
    layer = forward.layer(stream, weights, context(bench), bench.layer)
    for _ in range(steps):
        next(layer)
    return _Pass(steps, layer, weights)


def _put_aimed(bench: Bench, number: int, chunk: int, step: Projection) -> None:
    """Put on the desk what rounding matrices takes that make up for drift."""
    name = f"a.{bench.slot}.{number}.{chunk}"
    aim = bench.desk.get(name)
    bench.desk.drop(name)
    if not bench.todo.isdisjoint(bench.steps[number].weights):
        wanted = aim if step.stream is None else _left(bench, step.matrices, aim - step.stream)
        put_rows(bench.desk, f"d.{quantized(number)}", wanted, bench.edges, chunk)
        _put_inputs(bench, quantized(number), step.inputs, chunk)


def _put_inputs(bench: Bench, key: str, inputs: Sequence[Array], chunk: int) -> None:
    """Put on the desk what some matrices read, of which each may have its own."""
    if len(inputs) == 1:
        put_rows(bench.desk, f"x.{key}", inputs[0], bench.edges, chunk)
        return
    for e, x in enumerate(inputs):
        for t, (begin, end) in enumerate(pairwise(bench.desk.sizes.edges(x.shape[1]))):
            bench.desk.put(f"x.{key}.{e}.{t}.{chunk}", x[:, begin:end])


def _left(bench: Bench, matrices: Sequence[str], wanted: Array) -> Array:
    """What a matrix has to add to the stream, its bias left out."""
    for bias in (f"{matrix}.bias" for matrix in matrices):
        if bias in bench.tensors:
            wanted -= bench.desk.get(f"w.{bench.slot}.{bias}")
    return wanted
