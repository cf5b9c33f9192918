"""How much divergence a relative squared error in each matrix causes, measured on a few tokens."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
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

TOKENS = 2048
_PROBES = ("Q3_K", "Q4_0", "Q8_0")  # the first whose blocks divide a row
_ONE_BY_ONE = 1 << 30  # weights up to which every matrix is measured on its own


def measure(
    model: Model, names: Sequence[str], tokens: Tokens, *, threads: int | None = None
) -> dict[str, float]:
    """Mean KL divergence per relative squared error of each named matrix.

    model: in the basis in which it is stored. tokens: (n_seq, n_tokens) int32; about TOKENS of them
    are used. Matrices of a large model are measured together by their role. Raises
    UnsupportedModelError where the architecture has no forward pass.
    """
    few = tokens[: max(1, TOKENS // tokens.shape[1])]
    states = list(_states(model, few))
    reference = ops.log_softmax(_logits(model, states[-1]).astype(np.float64))
    found: dict[str, float] = {}
    for group in _groups(model, names):
        changed, error = _disturbed(model, group, threads)
        first = min(_layer(name) for name in group)
        x = forward.embed(changed, few) if first < 0 else states[first]
        logits = _logits(changed, _run(changed, x, max(first, 0), few.shape[1]))
        other = ops.log_softmax(logits.astype(np.float64))
        divergence = float((np.exp(reference) * (reference - other)).sum(-1).mean())
        found |= dict.fromkeys(group, max(divergence, 0.0) / max(error, 1e-12))
    return found


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


def _groups(model: Model, names: Sequence[str]) -> list[list[str]]:
    if sum(model.tensors[n].size for n in names) <= _ONE_BY_ONE:
        return [[n] for n in names]
    by_role: Mapping[str, list[str]] = defaultdict(list)
    for name in names:
        by_role[role(name)[0]].append(name)
    return list(by_role.values())


def _disturbed(model: Model, names: Sequence[str], threads: int | None) -> tuple[Model, float]:
    """The model with these matrices rounded, and the sum of their relative squared errors."""
    tensors, error = dict(model.tensors), 0.0
    for name in names:
        tensor = tensors[name]
        probe = next((p for p in _PROBES if tensor.n_in % FORMATS[p].block_size == 0), None)
        if probe is None:
            continue
        x = tensor.read().reshape(-1, tensor.n_in)
        rounded = dequantize(quantize(x, probe, threads=threads), probe, tensor.n_in)
        error += metrics.relative_mse(x, rounded)
        tensors[name] = tensor.derived(partial(_cut, rounded))
    return replace(model, tensors=tensors), error


def _cut(values: F32, start: int, stop: int) -> F32:
    return values[start:stop]
