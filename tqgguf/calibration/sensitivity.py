"""How much divergence a relative squared error in each matrix causes, measured on a few tokens.

Every matrix on its own takes a pass through the network. Where those are too many, all matrices of
a role are rounded together, then all of a few layers, and a matrix gets its role's sensitivity
times its layers' factor. Where it is known how matrices in layers compare with each other, the
embedding, the head and all layers together take a pass each. All passes go through the layers side
by side, with the original's, so each layer is read and rounded once, and a pass is the original's
up to the first matrix that it rounds.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar, cast

import numpy as np

from tqgguf.kernels import metrics
from tqgguf.kernels.arrays import inner, namespace, rint, to_numpy
from tqgguf.kernels.dtypes import F32, F64
from tqgguf.kernels.search import reciprocal
from tqgguf.machine.devices import CPU, Device
from tqgguf.machine.threads import default_threads, keep_freed_memory, single_threaded_blas
from tqgguf.models import Model
from tqgguf.models.roles import layer_index, layer_prefix, role
from tqgguf.network import forward
from tqgguf.network.forward import Context, Tokens, Weights
from tqgguf.network.layer import rows
from tqgguf.network.ops import Array
from tqgguf.rotation.ends import EMBEDDING, HEAD, tied_head
from tqgguf.rotation.vectors import Energies

Result = TypeVar("Result")

TOKENS = 256
TOKENS_TOGETHER = 512  # where few passes are taken: a few tokens make much of a mean
_BLOCK, _LEVELS = 32, 16  # of the probe: weights that share a scale, levels on either side of 0
_SHORTENED = 22  # bits of 24 that a weight loses where proportions are measured
_ONE_BY_ONE = 1 << 30  # weights times matrices up to which every matrix is measured on its own
_BANDS = 3  # of layers between the outer two at either end
_HEAD_ROWS = 8192  # of the head at a time


def measure_sensitivity(
    model: Model,
    names: Sequence[str],
    tokens: Tokens,
    *,
    known: Mapping[str, float] | None = None,
    energies: Energies | None = None,
    threads: int | None = None,
    device: Device = CPU,
) -> dict[str, float]:
    """Mean KL divergence per relative squared error of each named matrix.

    model: in the basis in which it is stored. tokens: (n_seq, n_tokens) int32; about TOKENS of them
    are used, TOKENS_TOGETHER where `known` is given. known: of the matrices in layers, which are
    then multiplied by a factor that they have in common. energies: of the inputs in that basis,
    where errors are meant to be those of outputs. The numbers do not depend on `threads`. Raises
    UnsupportedModelError where the architecture has no forward pass.
    """
    fitting = [n for n in names if model.tensors[n].n_in % _BLOCK == 0]
    found = dict.fromkeys(names, 0.0)  # rows that fit no quantized type have no choice
    if known is not None:
        found |= {name: known[name] for name in fitting}
    first, bands = _groups(model, fitting, is_known=known is not None)
    probe = ROUNDED if known is None else SHORTENED
    few = probe.some(tokens)
    count = (threads or default_threads()) if device.is_cpu else 1
    keep_freed_memory()
    with single_threaded_blas(), ThreadPoolExecutor(count) as pool:
        passes = _Passes(model, few, energies, pool, device, probe)
        divergences, errors = passes.run([*first, *bands])
    for group, divergence in zip(first, divergences, strict=False):
        value = divergence / max(sum(errors[name] for name in group), 1e-12)
        found |= dict.fromkeys(group, value)
    for group, divergence in zip(bands, divergences[len(first) :], strict=True):
        expected = sum(found[name] * errors[name] for name in group)
        found |= {name: found[name] * divergence / max(expected, 1e-12) for name in group}
    return found


def _groups(
    model: Model, names: Sequence[str], *, is_known: bool
) -> tuple[list[list[str]], list[list[str]]]:
    """What is changed together: of its own sensitivity, and then of a factor to what is found."""
    if is_known:
        inside = [n for n in names if layer_prefix(n)]
        return [[n] for n in names if not layer_prefix(n)], [inside]
    if sum(model.tensors[n].size for n in names) * len(names) <= _ONE_BY_ONE:
        return [[n] for n in names], []
    return _by_role(names), _by_layers(names)


def energy_of(model: Model, energies: Energies | None, name: str) -> F32 | None:
    """(n_in,) float32, the mean over stacked experts; a tied embedding's are the head's."""
    found = energies(name) if energies else None
    if found is None and energies and name == EMBEDDING and tied_head(model):
        found = energies(HEAD)
    mean: F32 | None = None if found is None else found.mean(axis=0)
    return mean


class _LogSum:
    """The logarithm of a sum of exponentials over a vocabulary so far, for each token."""

    def __init__(self, state: Array) -> None:
        xp, n_tokens = namespace(state), state.shape[0] * state.shape[1]
        least = float(np.finfo(np.float32).min)
        self.most: Array = xp.full(n_tokens, least, dtype=xp.float32, device=state.device)
        self.total: Array = xp.zeros(n_tokens, dtype=xp.float64, device=state.device)

    def add(self, x: Array) -> tuple[Array, F64]:
        """Add logits of more of the vocabulary, (n_tokens, n).

        Returns their exponentials, of the distance to the largest logit so far, and what sums of
        earlier ones have to be multiplied by.
        """
        xp = namespace(x)
        most = xp.maximum(self.most, xp.max(x, axis=-1))
        powers = xp.exp(x - most[:, None])
        smaller = xp.exp(xp.astype(self.most - most, xp.float64))
        self.total = self.total * smaller + xp.sum(powers, axis=-1, dtype=xp.float64)
        self.most = most
        return powers, smaller

    def value(self) -> F64:
        """(n_tokens,) float64."""
        found: F64 = self.most + namespace(self.total).log(self.total)
        return found


class _Trial:
    """A pass in which some matrices are rounded; none is the original's.

    first: the layer before which it is the original's. state: (n_seq, n_tokens, n_embd), the stream
    before the next layer. sums and moved: what its predictions come to so far.
    """

    def __init__(self, names: Sequence[str], state: Array) -> None:
        self.names, self.state = names, state
        self.first = min(map(_layer, names), default=0)
        self.sums = _LogSum(state)
        self.moved: Array = namespace(state).zeros_like(self.sums.total)

    def through(self, weights: Weights, changed: Weights, ctx: Context, index: int) -> Array:
        """The stream after a layer, some of whose matrices are changed if they are its own."""
        mine = {n: x for n, x in changed.items() if f"blk.{index}.{n}" in self.names}
        return forward.drain(forward.layer(self.state, {**weights, **mine}, ctx, index))

    def weigh(self, ours: Array, powers: Array, smaller: F64, model: Model, at: slice) -> None:
        """Take in some rows of the head: the original's logits and what `_LogSum.add` says."""
        normed = forward.final_norm(model, self.state)
        theirs = forward.scores(model, rows(normed), at.start, at.stop)
        self.sums.add(theirs)
        self.moved = self.moved * smaller + inner(powers, ours - theirs)

    def divergence(self, original: _LogSum) -> float:
        """Mean KL divergence from the original in nats: sum p (log p - log q)."""
        found = self.moved / original.total - original.value() + self.sums.value()
        return max(float(to_numpy(found).mean()), 0.0)


@dataclass
class _Passes:
    """The original's pass and those of all trials, a layer at a time."""

    model: Model
    tokens: Tokens
    energies: Energies | None
    pool: Executor
    device: Device
    probe: "_Probe"
    errors: dict[str, float] = field(default_factory=dict)

    def run(self, groups: Sequence[Sequence[str]]) -> tuple[list[float], dict[str, float]]:
        """The divergence where each group is rounded; the relative error of every matrix."""
        ctx = forward.context(self.model, self.tokens.shape[1])
        start = self.device.put(forward.embed(self.model, self.tokens))
        original, *trials = (_Trial(names, start) for names in ([], *groups))
        for trial in trials:
            if trial.first < 0:
                trial.state = self._looked_up()
        layers = forward.layers(self.model, ctx.graph, put=self.device.put)
        for index, weights in enumerate(layers):
            changed = self._rounded(f"blk.{index}.", weights, groups)
            going = [original, *(t for t in trials if t.first <= index)]
            work = [partial(t.through, weights, changed, ctx, index) for t in going]
            for trial, state in zip(going, self.pool.map(_do, work), strict=True):
                trial.state = state
            for trial in (t for t in trials if t.first > index):
                trial.state = original.state
        for name in {n for names in groups for n in names if not layer_prefix(n)}:
            self.errors[name] = self._table_error(name)
        return self._compare(original, trials), self.errors

    def _looked_up(self) -> Array:
        """The stream before the first layer where the embedding is rounded."""
        tensors = dict(self.model.tensors)
        table = tensors[EMBEDDING]
        tensors[EMBEDDING] = table.derived(lambda a, b: self.probe.change(table.rows(a, b)))
        found = forward.embed(replace(self.model, tensors=tensors), self.tokens)
        return cast("Array", self.device.put(found))

    def _rounded(
        self, prefix: str, weights: Weights, groups: Iterable[Iterable[str]]
    ) -> dict[str, F32]:
        """What the matrices of a layer that are rounded become, by their names without prefix."""
        names = {n for group in groups for n in group if n.startswith(prefix)}
        short = sorted(name.removeprefix(prefix) for name in names)

        def change(name: str) -> F32:
            x, full = weights[name], prefix + name
            changed = self.probe.change(x)
            some = (rows(a)[:: self.probe.every, :] for a in (x, changed))
            self.errors[full] = metrics.ratio(*self._loss(full, *some))
            return changed

        return dict(zip(short, self.pool.map(change, short), strict=True))

    def _loss(self, name: str, x: F32, rounded: F32) -> tuple[float, float]:
        """The energy of the error, and that of the weights."""
        energy = None if self.probe.is_even else energy_of(self.model, self.energies, name)
        root = np.float32(1) if energy is None else np.sqrt(energy)
        return metrics.error_and_energy(to_numpy(x) * root, to_numpy(rounded) * root)

    def _table_error(self, name: str) -> float:
        """The relative error of what is in no layer."""
        table = self.model.tensors[name]

        def loss(at: int) -> tuple[float, float]:
            x = table.rows(at, min(at + _HEAD_ROWS, table.n_rows))
            return self._loss(name, x, self.probe.change(x))

        starts = range(0, table.n_rows, _HEAD_ROWS * self.probe.every)
        parts = list(self.pool.map(loss, starts))
        return metrics.ratio(sum(e for e, _ in parts), sum(w for _, w in parts))

    def _compare(self, original: _Trial, trials: Sequence[_Trial]) -> list[float]:
        """The divergences of what all of them predict, some rows of the head at a time."""
        name = forward.head_name(self.model)
        table, p = self.model.tensors[name], original.sums
        normed = rows(forward.final_norm(self.model, original.state))
        for at in range(0, table.n_rows, _HEAD_ROWS):
            here = slice(at, min(at + _HEAD_ROWS, table.n_rows))
            head = table.rows(here.start, here.stop)
            plain, changed = (self._with_head(name, at, x) for x in (head, self.probe.change(head)))
            ours = forward.scores(plain, normed, here.start, here.stop)
            powers, smaller = p.add(ours)
            todo = [
                partial(t.weigh, ours, powers, smaller, changed if name in t.names else plain, here)
                for t in trials
            ]
            list(self.pool.map(_do, todo))
        return [trial.divergence(p) for trial in trials]

    def _with_head(self, name: str, at: int, rows: F32) -> Model:
        """The model with rows of the head from `at` on in memory."""
        head = self.model.tensors[name].derived(lambda a, b: rows[a - at : b - at])
        return replace(self.model, tensors={**self.model.tensors, name: head})


def _do(work: Callable[[], Result]) -> Result:
    return work()


def rounded_to_levels(x: F32) -> F32:
    """Weights rounded to a few levels of each block's largest, plainly: (..., n_in), like x."""
    xp = namespace(x)
    blocks = xp.reshape(x, (-1, _BLOCK))
    step = _largest(xp.abs(blocks)) / _LEVELS
    out: F32 = xp.reshape(rint(blocks * reciprocal(step)) * step, x.shape)
    return out


def shortened(x: F32) -> F32:
    """Weights rounded to two significant bits: an error of about a tenth of each, (...) -> like x.

    By Veltkamp's splitting (Dekker 1971, https://doi.org/10.1007/BF01397083).
    """
    far = x * (2.0**_SHORTENED + 1)
    rounded: F32 = x - far
    rounded += far
    return rounded


@dataclass(frozen=True)
class _Probe:
    """How matrices are changed, and on which tokens that is judged.

    tokens: so many in all, context: at most so many of a sequence. is_even: whether all weights
    lose the same share, so that their inputs' energies do not matter. every: of so many rows one
    tells how much is lost.
    """

    change: Callable[[F32], F32]
    tokens: int
    context: int
    is_even: bool = False
    every: int = 1

    def some(self, tokens: Tokens) -> Tokens:
        """The tokens that are used."""
        size = min(self.context, tokens.shape[1])
        return tokens[: max(1, self.tokens // size), :size]


ROUNDED = _Probe(rounded_to_levels, TOKENS, TOKENS)
SHORTENED = _Probe(shortened, TOKENS_TOGETHER, 128, is_even=True, every=8)


def _largest(x: Any) -> Any:
    """The largest of each row, (n, a power of two) -> (n, 1), by halves: rows are short."""
    while x.shape[1] > 1:
        half = x.shape[1] // 2
        x = namespace(x).maximum(x[:, :half], x[:, half:])
    return x


def _by_role(names: Iterable[str]) -> list[list[str]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[role(name)[0]].append(name)
    return list(groups.values())


def _by_layers(names: Sequence[str]) -> list[list[str]]:
    """The matrices of the outer two layers at either end, and of a few bands between them."""
    layers = sorted({_layer(n) for n in names if layer_prefix(n)})
    inner = np.array_split(np.array(layers[2:-2], int), _BANDS)
    bands = [{layer} for layer in (*layers[:2], *layers[2:][-2:])] + [set(b) for b in inner]
    groups = ([n for n in names if layer_prefix(n) and _layer(n) in band] for band in bands)
    return [group for group in groups if group]


def _layer(name: str) -> int:
    """The layer a tensor is in; -1 for the embedding, beyond the last for the head."""
    layer = layer_index(name)
    if layer is not None:
        return layer
    return -1 if name == EMBEDDING else 10**6
