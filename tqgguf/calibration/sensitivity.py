"""How much divergence a relative squared error in each matrix causes, measured on a few tokens.

Every matrix on its own takes a pass through the network. Where those are too many, all matrices of
a role are rounded together, then all of a few layers, and a matrix gets its role's sensitivity
times its layers' factor.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from tqgguf.formats import FORMATS, dequantize, quantize
from tqgguf.kernels import metrics
from tqgguf.kernels.dtypes import F32
from tqgguf.models import Model
from tqgguf.network import forward, ops
from tqgguf.network.forward import Tokens
from tqgguf.network.ops import Array
from tqgguf.rotation.architectures import layer_prefix, role
from tqgguf.rotation.folding import EMBEDDING, HEAD, tied_head
from tqgguf.rotation.vectors import Energies

TOKENS = 512
_PROBE = "Q4_0"
_ONE_BY_ONE = 1 << 30  # weights times matrices up to which every matrix is measured on its own
_BANDS = 3  # of layers between the outer two at either end
_AT_ONCE = 64  # tokens whose predictions are compared


def measure_sensitivity(
    model: Model,
    names: Sequence[str],
    tokens: Tokens,
    *,
    energies: Energies | None = None,
    threads: int | None = None,
) -> dict[str, float]:
    """Mean KL divergence per relative squared error of each named matrix.

    model: in the basis in which it is stored. tokens: (n_seq, n_tokens) int32; about TOKENS of them
    are used. energies: of the inputs in that basis, where errors are meant to be those of outputs.
    Raises UnsupportedModelError where the architecture has no forward pass.
    """
    fitting = [n for n in names if model.tensors[n].n_in % FORMATS[_PROBE].block_size == 0]
    trial = _Trial.of(model, tokens[: max(1, TOKENS // tokens.shape[1])], energies, threads)
    found = dict.fromkeys(names, 0.0)  # rows that fit no quantized type have no choice
    if sum(model.tensors[n].size for n in fitting) * len(fitting) <= _ONE_BY_ONE:
        return found | {name: trial.sensitivity([name]) for name in fitting}
    for group in _by_role(fitting):
        found |= dict.fromkeys(group, trial.sensitivity(group))
    for group in _by_layers(fitting):
        factor = trial.sensitivity(group, found)
        found |= {name: found[name] * factor for name in group}
    return found


def energy_of(model: Model, energies: Energies | None, name: str) -> F32 | None:
    """(n_in,) float32, the mean over stacked experts; a tied embedding's are the head's."""
    found = energies(name) if energies else None
    if found is None and energies and name == EMBEDDING and tied_head(model):
        found = energies(HEAD)
    mean: F32 | None = None if found is None else found.mean(axis=0)
    return mean


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


@dataclass(frozen=True)
class _Trial:
    """What the original computes on the tokens: the stream before each layer and predictions."""

    model: Model
    tokens: Tokens
    energies: Energies | None
    threads: int | None
    states: list[Array]
    logits: Array

    @classmethod
    def of(
        cls, model: Model, tokens: Tokens, energies: Energies | None, threads: int | None
    ) -> "_Trial":
        states = list(_states(model, tokens))
        return cls(model, tokens, energies, threads, states, _logits(model, states[-1]))

    def sensitivity(self, names: Sequence[str], known: dict[str, float] | None = None) -> float:
        """Divergence per error of these matrices together, or per divergence that is expected.

        known: sensitivities to expect by.
        """
        changed, expected = self._disturbed(names, known or {})
        first = min(_layer(name) for name in names)
        first = min(first, len(self.states) - 1)  # the head reads what the last layer leaves
        x = forward.embed(changed, self.tokens) if first < 0 else self.states[first]
        other = _logits(changed, _run(changed, x, max(first, 0), self.tokens.shape[1]))
        return max(_divergence(self.logits, other), 0.0) / max(expected, 1e-12)

    def _disturbed(self, names: Sequence[str], known: dict[str, float]) -> tuple[Model, float]:
        """The model with these matrices rounded, and the sum of their errors, each times known."""
        tensors, total = dict(self.model.tensors), 0.0
        for name in names:
            tensor = tensors[name]
            x = tensor.read().reshape(-1, tensor.n_in)
            energy = energy_of(self.model, self.energies, name)
            data = quantize(x, _PROBE, energy, threads=self.threads)
            rounded = dequantize(data, _PROBE, tensor.n_in)
            root = np.float32(1) if energy is None else np.sqrt(energy)
            error = metrics.relative_mse(x * root, rounded * root)
            total += known.get(name, 1.0) * error
            tensors[name] = tensor.derived(partial(_cut, rounded))
        return replace(self.model, tensors=tensors), total


def _states(model: Model, tokens: Tokens) -> Iterator[Array]:
    """The stream before each layer, and after the last."""
    ctx = forward.context(model, tokens.shape[1])
    x = forward.embed(model, tokens)
    yield x
    for index, weights in enumerate(forward.layers(model, ctx.graph)):
        x = forward.drain(forward.layer(x, weights, ctx, index))
        yield x


def _run(model: Model, x: Array, first: int, n_tokens: int) -> Array:
    """The stream after the last layer, from the one before layer `first`."""
    ctx = forward.context(model, n_tokens)
    for index in range(first, ctx.graph.n_layer):
        weights = forward.layer_weights(model, index)
        x = forward.drain(forward.layer(x, weights, ctx, index))
    return x


def _logits(model: Model, x: Array) -> Array:
    return forward.head(model, forward.final_norm(model, x))


def _layer(name: str) -> int:
    """The layer a tensor is in; -1 for the embedding, beyond the last for the head."""
    prefix = layer_prefix(name)
    if prefix:
        return int(prefix.split(".")[1])
    return -1 if name == "token_embd.weight" else 10**6


def _divergence(ours: Array, theirs: Array) -> float:
    """Mean KL divergence in nats of (..., n_vocab) logits."""
    total, flat = 0.0, [a.reshape(-1, a.shape[-1]) for a in (ours, theirs)]
    for at in range(0, len(flat[0]), _AT_ONCE):
        p, q = (ops.log_softmax(a[at : at + _AT_ONCE].astype(np.float64)) for a in flat)
        total += float((np.exp(p) * (p - q)).sum())
    return total / len(flat[0])


def _cut(values: F32, start: int, stop: int) -> F32:
    return values[start:stop]
