"""Quantize a model layer by layer so that its outputs on some text change least.

Two passes go through the layers side by side: one of the original, one of what is quantized so far.
Before a matrix is rounded, the second moments of its input in the quantized network are measured,
and with them how far this input, and the stream that the product is added to, have drifted from the
original's. The matrix is first moved to where it makes up for the drift, then rounded with error
feedback (tqgguf.kernels.feedback).
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, count, pairwise
from typing import Any

import numpy as np

from tqgguf.calibration.kept import Arrays, Kept
from tqgguf.calibration.passes import Computed, Noted, Pass
from tqgguf.formats import FORMATS, Format, dequantize, is_float, quantize
from tqgguf.kernels import feedback
from tqgguf.kernels.dtypes import F32, U8
from tqgguf.machine.threads import default_threads, map_in_order, single_threaded_blas
from tqgguf.models import Model
from tqgguf.network import forward
from tqgguf.network.forward import Step, Tokens, Weights
from tqgguf.network.ops import Array
from tqgguf.rotation.folding import EMBEDDING, HEAD

_CHUNK = 2048  # tokens that go through a layer at a time
_ROWS = 1024  # rows of a matrix that are rounded at a time
_COLUMNS = 1024  # columns of the second moments that a thread works on
_EMBEDDING_SHARE = 0.1  # of a tied table's second moments: its rows are also read as they are


@dataclass(frozen=True)
class Settings:
    """How to calibrate; the defaults are what was measured to be good (docs/LOG.md)."""

    sweeps: int = 4
    damping: float = feedback.DAMPING
    drift: float = 1.0  # the share of the inputs' and the stream's drift that is made up for
    ridge: float = 0.1  # of the mean of H's diagonal: keeps what makes up for drift small
    threads: int | None = None
    memory: int = 2 << 30  # bytes of inner activations to keep; beyond that they are computed anew


@dataclass
class _Moments:
    """Sums over tokens for one input: x^T x, x^T dx and x^T ds of the quantized network's x.

    dx is how far the original's input is from x, ds the same for the stream.
    """

    count: int = 0
    xx: Any = 0.0
    xdx: Any = 0.0
    xds: Any = None


def calibrate(
    model: Model,
    types: Mapping[str, str],
    tokens: Tokens,
    settings: Settings = Settings(),
    *,
    known: Mapping[str, U8] | None = None,
    kept: Kept | None = None,
) -> Iterator[tuple[str, U8]]:
    """Quantize every matrix that `types` names.

    model: in the basis in which it is stored (see `fold`). types: tensor name -> GGUF type, float
    types are left alone. tokens: (n_seq, n_tokens) int32. known: what an earlier run with the same
    arguments yielded, or part of it. kept: what the original network computed on these tokens is
    taken from here, or put here. Yields name and rows, (n_rows, n_bytes) uint8, in the order of the
    network. The bytes depend neither on the number of threads nor on what was kept.

    Raises:
        UnsupportedModelError: there is no forward pass for the architecture.
    """
    with single_threaded_blas():
        yield from _Calibration(model, types, tokens, settings, known or {}, kept).run()


class _Calibration:
    """The state of a calibration: what the two networks have computed so far."""

    def __init__(
        self,
        model: Model,
        types: Mapping[str, str],
        tokens: Tokens,
        settings: Settings,
        known: Mapping[str, U8],
        kept: Kept | None,
    ) -> None:
        self.model, self.settings, self.known, self.kept = model, settings, known, kept
        self.types = {n: t for n, t in types.items() if not is_float(t) and n in model.tensors}
        self.ctx = forward.context(model, tokens.shape[1])
        per_chunk = max(1, _CHUNK // tokens.shape[1])
        self.tokens = np.split(tokens, range(per_chunk, len(tokens), per_chunk))
        self.threads = settings.threads or default_threads()

    def run(self) -> Iterator[tuple[str, U8]]:
        if self.types.keys() <= self.known.keys():
            yield from ((name, self.known[name]) for name in self.types)
            return
        self.original = [forward.embed(self.model, t) for t in self.tokens]
        embedded = yield from self._embedding()
        self.quantized = [forward.embed(embedded, t) for t in self.tokens]
        for index in range(self.ctx.graph.n_layer):
            yield from self._layer(index)
        if HEAD in self.types:
            yield from self._head()

    def _embedding(self) -> Any:
        """The token table; a tied one is also the head and rounded for that."""
        if EMBEDDING not in self.types:
            return self.model
        table = self.model.tensors[EMBEDDING]
        if EMBEDDING in self.known:
            data = self.known[EMBEDDING]
        elif HEAD in self.model.tensors:
            data = quantize(table.read(), self.types[EMBEDDING], threads=self.threads)
        else:
            (h,) = self.kept.once("head", self._head_moments) if self.kept else self._head_moments()
            h = h * np.float32(len(h) / max(float(np.trace(h)), 1e-30))
            h[np.diag_indices(len(h))] += _EMBEDDING_SHARE
            data = self._round(table.read(), h, self.types[EMBEDDING])
        yield EMBEDDING, data
        rows = partial(_decoded_rows, data, self.types[EMBEDDING], table.n_in)
        tensors = {**self.model.tensors, EMBEDDING: table.derived(rows)}
        return replace(self.model, tensors=tensors)

    def _head_moments(self) -> Arrays:
        """Second moments of what the head reads, from a pass of the original alone."""
        states = self.original
        for index in range(self.ctx.graph.n_layer):
            weights = forward.layer_weights(self.model, index)
            work = partial(self._through, index, weights, states)
            states = list(map_in_order(work, range(len(states)), threads=self.threads))
        moments = _Moments()
        for x in states:
            flat = _flat(forward.final_norm(self.model, x))
            _accumulate(moments, flat, None, None, self.threads)
        return [np.asarray(moments.xx / np.float32(moments.count), np.float32)]

    def _through(self, index: int, weights: Weights, states: Sequence[F32], i: int) -> F32:
        """Chunk i after layer `index` of the original."""
        going = self._original_pass(index, weights, states, i)
        while going.advance():
            pass
        out: F32 = going.result
        return out

    def _original_pass(self, index: int, weights: Weights, states: Sequence[F32], i: int) -> Pass:
        """A pass of chunk i through layer `index` of the original, from its state before it."""

        def compute() -> Computed:
            return Computed(forward.layer(states[i], weights, self.ctx, index))

        return Noted(self.kept, f"{index}.{i}", compute) if self.kept else compute()

    def _layer(self, index: int) -> Iterator[tuple[str, U8]]:
        original = forward.layer_weights(self.model, index)
        weights = dict(original)
        held: dict[int, _Pair] | None = {} if self._fits(original) else None

        def begin(i: int) -> _Pair:
            return _Pair(
                self._original_pass(index, original, self.original, i),
                Computed(forward.layer(self.quantized[i], weights, self.ctx, index)),
            )

        for stage in count():
            pairs = self._stage(stage, begin, held)
            first = next(pairs)
            if first.steps is None:
                ends = [first, *pairs]
                self.original = [pair.original.result for pair in ends]
                self.quantized = [pair.quantized.result for pair in ends]
                return
            pairs = chain([first], pairs)
            yield from self._step(f"blk.{index}.", first.steps[0].matrices, pairs, weights)
            if held is not None:
                deque(pairs, maxlen=0)  # whatever was not looked at has to get here too

    def _fits(self, weights: Weights) -> bool:
        """Whether the inner activations of all tokens can be kept while a layer is worked on."""
        widths = (max(w.shape[-2:]) for w in weights.values() if w.ndim > 1)
        per_token = 8 * (max(widths, default=0) + 4 * self.ctx.graph.n_embd)
        return per_token * sum(t.size for t in self.tokens) <= self.settings.memory

    def _stage(
        self, stage: int, begin: Callable[[int], "_Pair"], held: dict[int, "_Pair"] | None
    ) -> Iterator["_Pair"]:
        """Bring every chunk's two passes to their step number `stage`, a few chunks at a time.

        They go on from where they are held, or else from the layer's begin.
        """

        def bring(i: int) -> _Pair:
            pair = held.pop(i, None) if held else None
            if pair is None:
                pair = begin(i)
                pair.skip(stage if held is None else 0)
            pair.advance()
            return pair

        for first in range(0, len(self.tokens), self.threads):
            window = range(first, min(first + self.threads, len(self.tokens)))
            for i, pair in zip(
                window, map_in_order(bring, window, threads=self.threads), strict=True
            ):
                if held is not None:
                    held[i] = pair
                yield pair

    def _step(
        self,
        prefix: str,
        matrices: Sequence[str],
        pairs: Iterator["_Pair"],
        weights: dict[str, Array],
    ) -> Iterator[tuple[str, U8]]:
        """Round the matrices that are about to be used, and put them into `weights`."""
        names = [m for m in matrices if f"{prefix}{m}.weight" in self.types]
        if not names:
            return
        moments = None
        for name in names:
            full, local = f"{prefix}{name}.weight", f"{name}.weight"
            w = weights[local]
            if full in self.known:
                data = self.known[full]
            else:
                moments = moments or self._measure(pairs)
                data = self._matrix(w, moments, self.types[full])
            weights[local] = dequantize(data, self.types[full], w.shape[-1]).reshape(w.shape)
            yield full, data

    def _measure(self, pairs: Iterator["_Pair"]) -> list[_Moments]:
        """Moments of every expert's input, or of the one input."""
        moments: list[_Moments] = []
        for pair in pairs:
            original, quantized = pair.both()
            moments = moments or [_Moments() for _ in quantized.inputs]
            stream: Any = None
            if original.stream is not None and quantized.stream is not None:
                stream = original.stream - quantized.stream
            for m, x, y in zip(moments, quantized.inputs, original.inputs, strict=True):
                drift: Any = y - x if len(moments) == 1 else None
                _accumulate(m, x, drift, stream, self.threads)
        return moments if len(moments) == 1 else _shrunk(moments)

    def _matrix(self, w: F32, moments: list[_Moments], type: str) -> U8:
        stacked = w.reshape(len(moments), -1, w.shape[-1])
        parts = []
        for rows, m in zip(stacked, moments, strict=True):
            h = m.xx / np.float32(max(m.count, 1))
            parts.append(self._round(self._moved(rows, m), h, type))
        return np.concatenate(parts)

    def _moved(self, rows: F32, m: _Moments) -> F32:
        """The matrix that best reproduces the original's output from the drifted input."""
        share = self.settings.drift * max(0.0, 1 - 2 * rows.shape[1] / max(m.count, 1))
        if share == 0 or isinstance(m.xdx, float):
            return rows
        h = m.xx.astype(np.float64)
        mean = max(float(np.trace(h)) / len(h), 1e-30)
        h[np.diag_indices(len(h))] += self.settings.ridge * mean
        wanted = m.xdx @ rows.T
        if m.xds is not None:
            wanted += m.xds
        moved: F32 = rows + np.float32(share) * np.linalg.solve(h, wanted).T.astype(np.float32)
        return moved

    def _round(self, rows: F32, h: F32, type: str) -> U8:
        """Error feedback, some rows at a time: (n_rows, n_in) -> (n_rows, n_bytes)."""
        fmt = FORMATS[type]
        moments = feedback.prepare(h, damping=self.settings.damping)
        work = partial(_round_rows, fmt, moments, self.settings.sweeps)
        pieces = np.split(rows, range(_ROWS, len(rows), _ROWS))
        return np.concatenate(list(map_in_order(work, pieces, threads=self.threads)))

    def _head(self) -> Iterator[tuple[str, U8]]:
        if HEAD in self.known:
            yield HEAD, self.known[HEAD]
            return
        moments = _Moments()
        for x, y in zip(self.quantized, self.original, strict=True):
            seen, meant = (_flat(forward.final_norm(self.model, a)) for a in (x, y))
            _accumulate(moments, seen, meant - seen, None, self.threads)
        yield HEAD, self._matrix(self.model.tensors[HEAD].read(), [moments], self.types[HEAD])


@dataclass
class _Pair:
    """The passes of one chunk through the original and through the quantized layer."""

    original: Pass
    quantized: Pass
    steps: tuple[Step, Step] | None = None

    def advance(self) -> None:
        original, quantized = self.original.advance(), self.quantized.advance()
        self.steps = (original, quantized) if original and quantized else None

    def skip(self, steps: int) -> None:
        self.original.skip(steps)
        self.quantized.skip(steps)

    def both(self) -> tuple[Step, Step]:
        if self.steps is None:
            raise AssertionError("the passes have ended")
        return self.steps


def _round_rows(fmt: Format, moments: feedback.Moments, sweeps: int, rows: F32) -> U8:
    w = np.ascontiguousarray(rows.T)
    blocks = fmt.encode_matrix(w, moments, sweeps=sweeps)
    return np.ascontiguousarray(blocks.T).view(np.uint8).reshape(len(rows), -1)


def _accumulate(m: _Moments, x: F32, drift: F32 | None, stream: F32 | None, threads: int) -> None:
    """Add a chunk's sums, each thread computing some columns of them."""
    m.count += len(x)
    m.xx = m.xx + _product(x, x, threads)
    if drift is not None:
        m.xdx = m.xdx + _product(x, drift, threads)
    if stream is not None:
        m.xds = (0.0 if m.xds is None else m.xds) + _product(x, stream, threads)


def _product(x: F32, y: F32, threads: int) -> F32:
    """x^T y: (n, a), (n, b) -> (a, b), the same bits for any number of threads."""
    edges = [*range(0, y.shape[1], _COLUMNS), y.shape[1]]
    parts = map_in_order(lambda e: x.T @ y[:, e[0] : e[1]], list(pairwise(edges)), threads=threads)
    return np.concatenate(list(parts), axis=1)


def _shrunk(moments: list[_Moments]) -> list[_Moments]:
    """Experts that saw few tokens borrow the moments of all."""
    everything = sum(m.xx for m in moments) / np.float32(max(1, sum(m.count for m in moments)))
    borrowed = np.float32(np.shape(everything)[0] / 4)
    return [_Moments(m.count + int(borrowed), m.xx + borrowed * everything) for m in moments]


def _flat(x: F32) -> F32:
    return x.reshape(-1, x.shape[-1])


def _decoded_rows(data: U8, type: str, n_in: int, start: int, stop: int) -> F32:
    return dequantize(data[start:stop], type, n_in)
