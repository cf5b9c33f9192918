"""Quantize a model layer by layer so that its outputs on some text change least.

Matrices are rounded with error feedback (tqgguf.kernels.feedback) for the second moments of what
they read. For most of them that is what they read in the original network, and this is done some
layers ahead (tqgguf.calibration.ahead). The last matrix of a layer that adds to the stream is
rounded for what it reads in the quantized network; before that it is moved to where the stream
after it becomes the original's again, so it makes up for all that was lost so far.

Here is the order of things; what is done is in tqgguf.calibration.work. It is cut into pieces by
tokens, by tiles of moments and by rows of matrices, in the same way whoever does them, and sums are
made in the order of the tokens: the bytes do not depend on the number of workers.
"""

import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tqgguf.calibration import work
from tqgguf.calibration.ahead import Ahead, OnExperts
from tqgguf.calibration.bench import CONTEXT, AnyDesk, Bench, Step, put_weights
from tqgguf.calibration.desk import SIZES, Sizes, open_desk
from tqgguf.calibration.device_desk import DeviceDesk
from tqgguf.calibration.kept import Kept
from tqgguf.calibration.layers import Layers
from tqgguf.calibration.moments import Accumulator, InputMoments, share_of
from tqgguf.calibration.rounding import Rounder
from tqgguf.calibration.settings import Feedback
from tqgguf.formats import dequantize, is_float, quantize
from tqgguf.kernels.arrays import to_numpy
from tqgguf.kernels.dtypes import F32, U8
from tqgguf.machine import crew as crews
from tqgguf.machine.board import Batch, Procedure
from tqgguf.machine.crew import Crew
from tqgguf.machine.devices import CPU, Device
from tqgguf.machine.threads import default_threads, single_threaded_blas
from tqgguf.models import Model, Tensor
from tqgguf.models.roles import layer_index, layer_prefix
from tqgguf.network import forward
from tqgguf.network.forward import Tokens
from tqgguf.network.layer import rows as rows_of
from tqgguf.rotation.ends import EMBEDDING, HEAD

_HEAD_TOKENS = 64  # times the width of the stream: with 4 KL divergence rose by 9 % (docs/LOG.md)
_EMBEDDING_SHARE = 0.1  # of a tied table's second moments: its rows are also read as they are


def calibrate(
    model: Model,
    types: Mapping[str, str],
    tokens: Tokens,
    settings: Feedback = Feedback(),
    *,
    known: Mapping[str, U8] | None = None,
    kept: Kept | None = None,
    crew: Crew | None = None,
    desks: Path | None = None,
    device: Device = CPU,
    sizes: Sizes = SIZES,
    on_experts: OnExperts = lambda *_: None,
) -> Generator[tuple[str, U8], None, None]:
    """Quantize every matrix that `types` names.

    model: in the basis in which it is stored (see `fold`). types: tensor name -> GGUF type, float
    types are left alone. tokens: (n_seq, n_tokens) int32. known: what an earlier run with the same
    arguments yielded, or part of it. kept: what the original network computed on these tokens is
    taken from here, or put here. crew: who does the work (None: a thread per processor). desks:
    a folder for the arrays that they share (None: one for temporary files). device: other than the
    CPU, it holds these arrays, and this process does all of the work with them. sizes: how much is
    worked on at a time. on_experts is called with a matrix of experts' name and how many tokens
    each of them saw. Yields name and rows, (n_rows, n_bytes) uint8, layer after layer, after the
    token table and before the head.
    The bytes depend neither on the number of workers nor on what was kept.

    Raises:
        UnsupportedModelError: there is no forward pass for the architecture.
        OutputError: no room for the shared arrays.
        WeightError: the network computes NaN or Inf.
        device.exhausted: the device has too little memory.
    """
    known = known or {}
    wanted = {n: t for n, t in types.items() if not is_float(t) and n in model.tensors}
    if wanted.keys() <= known.keys():
        yield from ((name, known[name]) for name in sorted(wanted, key=_place))
        return
    with single_threaded_blas(), ThreadPoolExecutor(sizes.slots) as pool, ExitStack() as stack:
        if device.is_cpu:
            crew, desk = stack.enter_context(_at_files(crew, desks, sizes))
        else:
            crew, desk = Crew(), DeviceDesk(device, sizes)
        stack.callback(work.forget, desk)
        who = kept, crew, desk, pool, on_experts
        yield from _Conductor(model, wanted, tokens, settings, known, *who).run()


@contextmanager
def _at_files(crew: Crew | None, root: Path | None, sizes: Sizes) -> Iterator[tuple[Crew, AnyDesk]]:
    """A crew (None: a thread per processor) and a desk that all of it sees."""
    with ExitStack() as stack:
        crew = crew or stack.enter_context(crews.threads(default_threads()))
        desk = stack.enter_context(open_desk(root, sizes))
        crew.check_sight(desk.folder)
        yield crew, desk


class _Conductor:
    """Says what is to be done next; the state of a calibration is on the desk."""

    def __init__(
        self,
        model: Model,
        types: Mapping[str, str],
        tokens: Tokens,
        settings: Feedback,
        known: Mapping[str, U8],
        kept: Kept | None,
        crew: Crew,
        desk: AnyDesk,
        pool: ThreadPoolExecutor,
        on_experts: OnExperts,
    ) -> None:
        self.model, self.types, self.tokens = model, types, tokens
        self.settings, self.known, self.crew, self.desk = settings, known, crew, desk
        self.kept, self.pool = kept, pool
        context = forward.context(model, tokens.shape[1])
        desk.put_object(CONTEXT, context)
        self.n_layer, self.n_embd = context.graph.n_layer, context.graph.n_embd
        per_chunk = max(1, desk.sizes.tokens // tokens.shape[1])
        self.edges = [*range(0, len(tokens), per_chunk), len(tokens)]
        self.rows = [edge * tokens.shape[1] for edge in self.edges]
        self.chunks = range(len(self.edges) - 1)
        self.moments = Accumulator(desk, settings, self.n_embd, self.chunks, kept)
        self.rounder = Rounder(model, types, desk, settings.sweeps)
        common = model, types, known, desk, self.rows, kept, pool
        window = desk.sizes.slots if settings.factors > 1 else 1  # of two at work both may factor
        self.layers = Layers(*common, count=self.n_layer, holds=self._fits(), window=window)
        self.ahead = Ahead(self.layers, self.moments, self.rounder, on_experts)

    def run(self) -> Iterator[tuple[str, U8]]:
        is_tied = EMBEDDING in self.types and HEAD not in self.model.tensors
        if is_tied and EMBEDDING not in self.known:
            self._put_tied_moments()
        self._put_streams("o", self.model)
        yield from self.crew.together([self._quantize()], *self.ahead.procedures())

    def _do(self, *groups: Sequence[Procedure]) -> None:
        for _ in self.crew.together(*groups):
            pass

    def _put_streams(self, name: str, model: Model) -> None:
        """Put every chunk's stream before the first layer on the desk."""
        count = max(1, self.desk.sizes.looked_up // max(1, self.rows[1]))
        for at in range(0, len(self.chunks), count):
            edges = self.edges[at : at + count + 1]
            stream = forward.embed(model, self.tokens[edges[0] : edges[-1]])
            for i, (begin, end) in enumerate(pairwise(edges), at):
                self.desk.put(f"{name}.0.{i}", stream[begin - edges[0] : end - edges[0]])

    def _fits(self) -> bool:
        """Whether the inner activations of all tokens can be kept while a layer is worked on."""
        widths = [max(t.shape[-2:]) for n, t in self.model.tensors.items() if _is_of_layer(n, t)]
        per_token = 4 * (max(widths, default=0) + 4 * self.n_embd)
        fits = per_token * self.tokens.size <= self.settings.memory
        return fits and self.desk.sizes.holds

    def _put_tied_moments(self) -> None:
        """Put on the desk what the token table of a tied model reads as the head."""
        (h,) = self.kept.once("head", self._head_moments) if self.kept else self._head_moments()
        h = h * np.float32(len(h) / max(float(np.trace(h)), 1e-30))
        h[np.diag_indices(len(h))] += np.float32(_EMBEDDING_SHARE)
        self.desk.put("m.head.0", h[None])

    def _head_moments(self) -> list[F32]:
        """Second moments of what a tied head reads, from a pass of the original alone."""
        chunks = self.chunks[: self._enough()]
        rows = self.rows[: len(chunks) + 1]
        self._put_streams("o", self.model)
        self._do(*self.ahead.first_pass(len(chunks)))
        self.layers.restart()
        moments = self._of_head(EMBEDDING, rows[-1])
        for i in chunks:
            stream = self.desk.get(f"o.{self.n_layer % 2}.{i}")
            work.put_rows(self.desk, f"x.{moments.key}", self._normed(stream), rows, i)
        self._do([self.moments.sum([moments], sums=self.desk.sizes.sums)])
        return [np.array(to_numpy(work.added_up(self.desk.get(f"m.{moments.key}.0"))))]

    def _enough(self) -> int:
        """How many chunks tell what a tied head reads; its rows are looked up as well."""
        tokens = _HEAD_TOKENS * self.n_embd
        return -(-tokens // int(self.tokens[: self.edges[1]].size))

    def _of_head(self, name: str, n_tokens: int, share: float = 0.0) -> InputMoments:
        """What the head reads."""
        step = Step(0, (), (n_tokens,), shared=True, aims=share > 0, streams=False)
        return InputMoments("head", name, self.n_embd, step, share)

    def _normed(self, stream: F32) -> F32:
        """What the head reads, (n_tokens, n_embd)."""
        return rows_of(forward.final_norm(self.model, stream))

    def _round(self, moments: InputMoments) -> Procedure:
        """Round a matrix outside the layers, the sums of whose moments are on the desk."""
        name = moments.reader
        yield from self.moments.factor([moments])
        tensor = self.model.tensors[name]
        yield self.pool.submit(put_weights, self.desk, f"w.{name}", tensor)
        yield Batch(self.rounder.tasks([name], moments))
        self.moments.forget([moments])

    def _quantize(self) -> Procedure:
        """Round what makes up for drift, layer after layer, and yield all that is rounded.

        Whoever comes to the end of a layer begins the next one, if that is ready.
        """
        yield from self._embed()
        layers, number = self.layers, 0
        bench = yield from self._begin(0)
        while bench:
            is_ready = layers.rounded > bench.layer + 1
            following = layers.benches[bench.layer + 1] if is_ready else None
            todo = [partial(work.advance, bench, number, i, following) for i in self.chunks]
            is_held = bench.waits or (following is not None and following.waits)
            (there, *_) = yield Batch(todo, at_home=is_held)
            if there is None or there[0] > bench.layer:
                layers.finished = bench.layer + 1
                bench, number = (yield from self._begin(bench.layer + 1)), 0
            if there and bench:
                step = bench.steps[there[1]]
                yield from self._step(bench, step)
                layers.note(bench.layer, bench.steps, [step])
                bench, number = layers.benches[bench.layer], step.number + 1
        if HEAD in self.types:
            yield from self._head()

    def _embed(self) -> Procedure:
        """Put the quantized network's streams before its first layer on the desk."""
        model, table = self.model, self.model.tensors[EMBEDDING]
        if EMBEDDING in self.types:
            type = self.types[EMBEDDING]
            if EMBEDDING in self.known:
                data = self.known[EMBEDDING]
            elif HEAD in model.tensors:
                data = yield self.pool.submit(lambda: quantize(table.read(), type, threads=1))
            else:
                yield from self._round(self._of_head(EMBEDDING, self.tokens.size))
                data = self.rounder.rows(EMBEDDING)
            yield EMBEDDING, data
            derived = table.derived(partial(_decoded_rows, data, type, table.n_in))
            model = replace(model, tensors={**model.tensors, EMBEDDING: derived})
        yield self.pool.submit(self._put_streams, "s", model)

    def _begin(self, layer: int) -> Generator[Any, Any, Bench | None]:
        """A layer of which only that is left which makes up for drift; None after the last."""
        if layer == self.n_layer:
            return None
        yield self.layers.until("rounded", layer)
        for name in self.ahead.alone(layer):
            yield name, self._rows(name)
        return self.layers.benches[layer]

    def _step(self, bench: Bench, step: Step) -> Procedure:
        """Round the matrices that are about to be used, and put them on the desk."""
        todo, names = self.layers.todo(bench, step), self.layers.matrices(bench, step)
        for name in names:
            if name in self.known:
                self.rounder.put_known(name, self.known[name])
        if todo:
            n_in = self.model.tensors[todo[0]].n_in
            share = share_of(self.settings.drift, n_in, step.counts[0])
            key = work.quantized(step.number)
            moments = InputMoments(key, todo[0], n_in, step, share)
            yield from self.moments.sum([moments], sums=self.desk.sizes.sums)
            yield from self.moments.factor([moments])
            yield Batch(self.rounder.tasks(todo, moments))
            self.moments.forget([moments])
        for name in names:
            yield name, self._rows(name)

    def _rows(self, name: str) -> U8:
        return self.known[name] if name in self.known else self.rounder.rows(name)

    def _head(self) -> Procedure:
        if HEAD not in self.known:
            share = share_of(self.settings.drift, self.n_embd, self.tokens.size)
            moments = self._of_head(HEAD, self.tokens.size, share)
            for i in self.chunks:
                meant, seen = (
                    self._normed(self.desk.get(f"{name}.{self.n_layer % 2}.{i}")) for name in "os"
                )
                work.put_rows(self.desk, f"x.{moments.key}", seen, self.rows, i)
                work.put_rows(self.desk, f"d.{moments.key}", meant, self.rows, i)
            yield from self.moments.sum([moments], sums=self.desk.sizes.sums)
            yield from self._round(moments)
        yield HEAD, self._rows(HEAD)


def _place(name: str) -> float:
    """Where a matrix comes in the network: the number of its layer."""
    layer = layer_index(name)
    if layer is not None:
        return layer
    return math.inf if name == HEAD else -math.inf


def _is_of_layer(name: str, tensor: Tensor) -> bool:
    return bool(layer_prefix(name)) and len(tensor.shape) > 1


def _decoded_rows(data: U8, type: str, n_in: int, start: int, stop: int) -> F32:
    return dequantize(data[start:stop], type, n_in)
