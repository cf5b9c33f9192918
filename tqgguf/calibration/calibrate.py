"""Quantize a model layer by layer so that its outputs on some text change least.

Two passes go through the layers side by side: one of the original, one of what is quantized so far.
Before a matrix is rounded, the second moments of its input in the quantized network are measured,
and with them what its product would have to be for the stream to become the original's again. The
matrix is first moved to where it makes up for the drift, then rounded with error feedback
(tqgguf.kernels.feedback).

Here is the order of things; what is done is in tqgguf.calibration.work. It is cut into pieces by
tokens, by tiles of moments and by rows of matrices, in the same way whoever does them, and sums are
made in the order of the tokens: the bytes do not depend on the number of workers.
"""

import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tqgguf.calibration import work
from tqgguf.calibration.bench import CONTEXT, AnyDesk, Bench, on_desk
from tqgguf.calibration.desk import SIZES, Desk, Sizes, open_desk
from tqgguf.calibration.device_desk import DeviceDesk
from tqgguf.calibration.kept import Kept
from tqgguf.calibration.moments import Accumulator, InputMoments, Sum
from tqgguf.calibration.rounding import Rounder
from tqgguf.calibration.settings import Feedback
from tqgguf.calibration.work import Reached
from tqgguf.formats import FORMATS, dequantize, is_float, quantize
from tqgguf.kernels.arrays import to_numpy
from tqgguf.kernels.dtypes import F32, U8
from tqgguf.machine import crew as crews
from tqgguf.machine.crew import Crew
from tqgguf.machine.devices import CPU, Device
from tqgguf.machine.threads import default_threads, single_threaded_blas
from tqgguf.models import Model, Tensor
from tqgguf.models.roles import layer_prefix
from tqgguf.network import forward
from tqgguf.network.forward import Tokens
from tqgguf.network.layer import rows as rows_of
from tqgguf.output.scales import per_row, scales_of
from tqgguf.rotation.ends import EMBEDDING, HEAD

_HEAD_TOKENS = 64  # times the width of the stream: with 4 KL divergence rose by 9 % (docs/LOG.md)
_EMBEDDING_SHARE = 0.1  # of a tied table's second moments: its rows are also read as they are


OnExperts = Callable[[str, Sequence[int]], object]


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
    each of them saw. Yields name and rows, (n_rows, n_bytes) uint8, in the order of the network.
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
        yield from ((name, known[name]) for name in wanted)
        return
    with single_threaded_blas(), ThreadPoolExecutor(1) as ahead, ExitStack() as stack:
        if device.is_cpu:
            crew, desk = stack.enter_context(_at_files(crew, desks))
        else:
            crew, desk = Crew(), DeviceDesk(device, sizes)
        stack.callback(work.forget, desk)
        who = kept, crew, desk, ahead, on_experts
        yield from _Conductor(model, wanted, tokens, settings, known, *who).run()


@contextmanager
def _at_files(crew: Crew | None, root: Path | None) -> Iterator[tuple[Crew, AnyDesk]]:
    """A crew (None: a thread per processor) and a desk that all of it sees."""
    with ExitStack() as stack:
        crew = crew or stack.enter_context(crews.threads(default_threads()))
        desk = stack.enter_context(_desk(root))
        crew.check_sight(desk.folder)
        yield crew, desk


@contextmanager
def _desk(root: Path | None) -> Iterator[Desk]:
    with ExitStack() as stack:
        if root is None:
            root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tqgguf-")))
        yield stack.enter_context(open_desk(root))


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
        ahead: ThreadPoolExecutor,
        on_experts: OnExperts,
    ) -> None:
        self.model, self.types, self.tokens = model, types, tokens
        self.settings, self.known, self.crew, self.desk = settings, known, crew, desk
        self.ahead, self.on_experts = ahead, on_experts
        self.coming: dict[int, Future[tuple[str, ...]]] = {}
        context = forward.context(model, tokens.shape[1])
        desk.put_object(CONTEXT, context)
        self.n_layer, self.n_embd = context.graph.n_layer, context.graph.n_embd
        per_chunk = max(1, desk.sizes.tokens // tokens.shape[1])
        self.edges = [*range(0, len(tokens), per_chunk), len(tokens)]
        self.rows = [edge * tokens.shape[1] for edge in self.edges]
        self.chunks = range(len(self.edges) - 1)
        self.kept, self.holds = kept, self._fits()
        self.moments = Accumulator(desk, crew, settings, self.n_embd, self.chunks)
        self.rounder = Rounder(model, types, desk, crew, settings.sweeps)

    def run(self) -> Iterator[tuple[str, U8]]:
        embedded = yield from self._embedding()
        self._put_streams("o", self.model)
        self._put_streams("s", embedded)
        yield from self._through_layers()
        if HEAD in self.types:
            yield from self._head()

    def _put_streams(self, name: str, model: Model) -> None:
        """Put every chunk's stream before the first layer on the desk."""
        stream = forward.embed(model, self.tokens)
        for i in self.chunks:
            self.desk.put(f"{name}.0.{i}", stream[self.edges[i] : self.edges[i + 1]])

    def _layers(self) -> Iterator[Bench]:
        """One layer after the other, the next one's weights on their way."""
        for layer in range(self.n_layer):
            if bench := self._enter(layer):
                yield bench

    def _enter(self, layer: int) -> Bench | None:
        """A layer that is worked on from now on, the one after it on its way; None at the end."""
        if layer == self.n_layer:
            return None
        bench = self._bench(layer)
        self._order(layer + 1)
        return bench

    def _order(self, layer: int) -> None:
        """Have a layer's weights put on the desk, where those two layers before it were."""
        if layer < self.n_layer and layer not in self.coming:
            self.coming[layer] = self.ahead.submit(self._put_layer, layer)

    def _bench(self, layer: int) -> Bench:
        """A layer whose weights are on the desk."""
        self._order(layer)
        tensors = self.coming.pop(layer).result()
        names = {name: f"blk.{layer}.{name}" for name in tensors}
        todo = (s for s, n in names.items() if n in self.types and n not in self.known)
        return Bench(
            *(self.desk, tuple(self.rows), self.kept, self.holds, layer),
            *(tensors, frozenset(todo)),
        )

    def _put_layer(self, layer: int) -> tuple[str, ...]:
        prefix = f"blk.{layer}."
        names = [name for name in self.model.tensors if layer_prefix(name) == prefix]
        for name in names:
            work.put_weights(self.desk, f"w.{on_desk(name)}", self.model.tensors[name])
        return tuple(name.removeprefix(prefix) for name in names)

    def _fits(self) -> bool:
        """Whether the inner activations of all tokens can be kept while a layer is worked on."""
        widths = [max(t.shape[-2:]) for n, t in self.model.tensors.items() if _is_of_layer(n, t)]
        per_token = 4 * (max(widths, default=0) + 4 * self.n_embd)
        fits = per_token * self.tokens.size <= self.settings.memory
        return fits and self.desk.sizes.holds

    def _embedding(self) -> Any:
        """The token table; a tied one is also the head and rounded for that."""
        if EMBEDDING not in self.types:
            return self.model
        table = self.model.tensors[EMBEDDING]
        if EMBEDDING in self.known:
            data = self.known[EMBEDDING]
        elif HEAD in self.model.tensors:
            data = quantize(table.read(), self.types[EMBEDDING], threads=1)
        else:
            self._put_head_moments()
            moments = InputMoments(0, (self.tokens.size,))
            self.moments.factor(moments)
            data = self._round_alone(EMBEDDING, moments)
        yield EMBEDDING, data
        rows = partial(_decoded_rows, data, self.types[EMBEDDING], table.n_in)
        tensors = {**self.model.tensors, EMBEDDING: table.derived(rows)}
        return replace(self.model, tensors=tensors)

    def _put_head_moments(self) -> None:
        """Second moments of what a tied head reads, from a pass of the original alone."""

        def found() -> list[F32]:
            self._put_streams("o", self.model)
            chunks = self.chunks[: self._enough()]
            rows = self.rows[: len(chunks) + 1]
            for bench in self._layers():
                todo = [partial(work.pass_original, bench, i) for i in chunks]
                for _ in self.crew.run(todo):
                    pass
            for i in chunks:
                stream = self.desk.get(f"o.{self.n_layer % 2}.{i}")
                work.put_rows(self.desk, "x.0", self._normed(stream), rows, i)
            sums = {"head": Sum("x.0", "x.0", (self.n_embd, self.n_embd), rows[-1])}
            self.moments.sum(EMBEDDING, sums)
            return [np.array(to_numpy(work.added_up(self.desk.get("head"))))]

        (h,) = self.kept.once("head", found) if self.kept else found()
        h = h * np.float32(len(h) / max(float(np.trace(h)), 1e-30))
        h[np.diag_indices(len(h))] += np.float32(_EMBEDDING_SHARE)
        self.desk.put("m.0.0", h[None])

    def _enough(self) -> int:
        """How many chunks tell what a tied head reads; its rows are looked up as well."""
        tokens = _HEAD_TOKENS * self.n_embd
        return -(-tokens // int(self.tokens[: self.edges[1]].size))

    def _normed(self, stream: F32) -> F32:
        """What the head reads, (n_tokens, n_embd)."""
        return rows_of(forward.final_norm(self.model, stream))

    def _through_layers(self) -> Iterator[tuple[str, U8]]:
        """Round the layers' matrices, step after step.

        From the last ones of a layer on it is known which layer follows: the original goes through
        it while they are rounded, and whoever comes to the end of the layer begins the next.
        """
        bench, stage = self._enter(0), 0
        following: Bench | None = None
        while bench:
            todo = [partial(work.advance, bench, stage, i, following) for i in self.chunks]
            steps = list(self.crew.run_at_home(todo))
            if steps[0] is None:
                bench, stage = self._enter(bench.layer + 1), 0
                continue
            if following and steps[0].layer == following.layer:
                self._order(following.layer + 1)
                bench, following, stage = following, None, 0
            matrices = [f"{m}.weight" for m in steps[0].matrices]
            matrices = [m for m in matrices if f"blk.{bench.layer}.{m}" in self.types]
            bench = replace(bench, done=bench.done | {*matrices})
            rounds = not bench.todo.isdisjoint(matrices)
            if rounds and bench.todo <= bench.done and bench.layer + 1 < self.n_layer:
                following = replace(self._bench(bench.layer + 1), aims=True)
            names = [f"blk.{bench.layer}.{m}" for m in matrices]
            yield from self._step(stage, names, [s for s in steps if s], following)
            stage += 1

    def _step(
        self, stage: int, names: Sequence[str], steps: Sequence[Reached], following: Bench | None
    ) -> Iterator[tuple[str, U8]]:
        """Round the matrices that are about to be used, and put them on the desk."""
        for name in names:
            if name in self.known:
                self._put_known(name)
        todo = [name for name in names if name not in self.known]
        if todo:
            aims = [partial(work.put_aims, following, i) for i in self.chunks if following]
            self.rounder.round(todo, self._measure(stage, todo, steps), aims)
        for name in names:
            yield name, self._rows(name)

    def _put_known(self, name: str) -> None:
        tensor = self.model.tensors[name]
        values = dequantize(self.known[name], self.types[name], tensor.n_in)
        if FORMATS[self.types[name]].is_scaled:
            values *= per_row(scales_of(tensor), 0, len(values), len(values))
        self.desk.put(f"q.{on_desk(name)}", values.reshape(tensor.shape))

    def _rows(self, name: str) -> U8:
        if name in self.known:
            return self.known[name]
        return np.array(self.desk.get(f"b.{on_desk(name)}"))

    def _measure(self, stage: int, names: Sequence[str], steps: Sequence[Reached]) -> InputMoments:
        """Take the moments of the inputs of these matrices."""
        n_in = self.model.tensors[names[0]].n_in
        moments = self.moments.measure(stage, names[0], n_in, steps)
        if len(moments.counts) > 1:
            self.on_experts(names[0], moments.counts)
        return moments

    def _round_alone(self, name: str, moments: InputMoments) -> U8:
        """Round a matrix outside the layers whose moments are on the desk."""
        work.put_weights(self.desk, f"w.{on_desk(name)}", self.model.tensors[name])
        self.rounder.round([name], moments)
        return self._rows(name)

    def _head(self) -> Iterator[tuple[str, U8]]:
        if HEAD in self.known:
            yield HEAD, self.known[HEAD]
            return
        for i in self.chunks:
            meant, seen = (
                self._normed(self.desk.get(f"{name}.{self.n_layer % 2}.{i}")) for name in "os"
            )
            work.put_rows(self.desk, "x.0", seen, self.rows, i)
            work.put_rows(self.desk, "d.0", meant, self.rows, i)
        counts = (self.tokens.size,)
        reached = Reached(self.n_layer, (), counts, shared=True, aims=True, streams=False)
        yield HEAD, self._round_alone(HEAD, self._measure(0, [HEAD], [reached]))


def _is_of_layer(name: str, tensor: Tensor) -> bool:
    return bool(layer_prefix(name)) and len(tensor.shape) > 1


def _decoded_rows(data: U8, type: str, n_in: int, start: int, stop: int) -> F32:
    return dequantize(data[start:stop], type, n_in)
