"""Linear attention by the gated delta rule (Yang et al., 2412.06464), as in Qwen3.5."""

import math

from tqgguf.kernels.arrays import namespace
from tqgguf.network import ops
from tqgguf.network.layer import (
    Layer,
    LayerContext,
    Weights,
    cut,
    halves,
    linear,
    norm,
    product,
    projection,
)
from tqgguf.network.ops import Array

_PROJECTIONS = ("attn_qkv", "attn_gate", "ssm_in", "ssm_beta", "ssm_alpha", "ssm_ba")
_CHUNK = 64  # tokens whose effect on each other is solved for at once


def delta_net(x: Array, stream: Array | None, w: Weights, ctx: LayerContext) -> Layer:
    """Heads that remember in a matrix each. x: (n_seq, n_tokens, n_embd).

    Values' heads i, i + n, i + 2n, ... share the key of n; in graphs whose projections lie key by
    key, those of one key are neighbours.
    """
    yield projection(tuple(name for name in _PROJECTIONS if f"{name}.weight" in w), x)
    mixed, gate = _mixed(x, w)
    q, k, v = _heads(mixed, w, ctx.graph.eps)
    alpha, beta = _rates(x, w, k.shape[2])
    k, q = (_spread(a, v.shape[2], by_key="ssm_ba.weight" in w) for a in (k, q))
    xp = namespace(x)
    decay = ops.softplus(alpha + w["ssm_dt.bias"]) * xp.reshape(w["ssm_a"], (-1,))
    found = gated_delta_rule(q, k, v, decay, ops.sigmoid(beta))
    normed = xp.reshape(norm(found, w, "ssm_norm", ctx.graph), gate.shape)
    normed *= ops.silu(gate)
    return (yield from product(normed, w, "ssm_out", stream))


def gated_delta_rule(q: Array, k: Array, v: Array, decay: Array, beta: Array) -> Array:
    """S <- e^decay S + beta k (v - e^decay S^T k)^T and out = S^T q / sqrt(dim), token by token.

    q, k, v: (n_seq, n_tokens, n_head, dim), decay <= 0 and beta: (n_seq, n_tokens, n_head) -> like
    v. Computed some tokens at a time: what they write is the solution of one triangular system.
    """
    xp = namespace(v)
    q, k, v = (xp.moveaxis(a, 1, 2) for a in (q, k, v))
    decay, beta = (xp.moveaxis(a, 1, 2) for a in (decay, beta))
    q = q * (1 / math.sqrt(q.shape[-1]))
    shape = (*v.shape[:2], k.shape[-1], v.shape[-1])
    memory, out = xp.zeros(shape, dtype=v.dtype, device=v.device), xp.empty_like(v)
    for at in range(0, v.shape[2], _CHUNK):
        part = (slice(None), slice(None), slice(at, min(at + _CHUNK, v.shape[2])), ...)
        out[part], memory = _chunk(q[part], k[part], v[part], decay[part], beta[part], memory)
    moved: Array = xp.moveaxis(out, 2, 1)
    return moved


def _chunk(
    q: Array, k: Array, v: Array, decay: Array, beta: Array, memory: Array
) -> tuple[Array, Array]:
    """What some tokens read, (..., n, dim), and the memory after them, (..., dim, dim)."""
    xp, n = namespace(v), decay.shape[-1]
    total = xp.cumulative_sum(decay, axis=-1)
    lower = xp.tril(xp.ones((n, n), dtype=v.dtype, device=v.device))
    apart = total[..., :, None] - total[..., None, :]
    gone = xp.exp(xp.where(lower > 0, apart, xp.full_like(apart, -math.inf)))
    since = xp.exp(total)[..., None]  # what is left of the memory at each token
    keys = k.mT
    system = xp.tril(k @ keys * gone, k=-1) * beta[..., None]
    system += xp.eye(n, dtype=v.dtype, device=v.device)
    written = xp.linalg.solve(system, (v - since * (k @ memory)) * beta[..., None])
    read = since * (q @ memory) + (q @ keys * gone) @ written
    left = xp.exp(total[..., -1:] - total)[..., None]
    memory = since[..., -1:, :] * memory + (k * left).mT @ written
    return read, memory


def _mixed(x: Array, w: Weights) -> tuple[Array, Array]:
    """What is convolved, queries, keys and values in order, and the gate: (n_seq, n_tokens, n)."""
    if "ssm_in.weight" not in w:
        return linear(x, w, "attn_qkv"), linear(x, w, "attn_gate")
    xp, dim, n_values = namespace(x), w["ssm_norm.weight"].shape[-1], math.prod(w["ssm_a"].shape)
    n_keys = w["ssm_conv1d.weight"].shape[0] // dim // 2 - n_values // 2
    own = n_values // n_keys * dim
    by_key = xp.reshape(linear(x, w, "ssm_in"), (*x.shape[:2], n_keys, -1))
    parts = cut(by_key, dim, 2 * dim, 2 * dim + own)
    q, k, v, gate = (xp.reshape(a, (*x.shape[:2], -1)) for a in parts)
    return xp.concat([q, k, v], axis=-1), gate


def _heads(mixed: Array, w: Weights, eps: float) -> tuple[Array, Array, Array]:
    """Queries, keys and values, each (n_seq, n_tokens, n_head, dim): a short convolution's."""
    mixed = ops.silu(_convolved(mixed, w["ssm_conv1d.weight"]))
    dim, n_values = w["ssm_norm.weight"].shape[-1], math.prod(w["ssm_a"].shape)
    heads = namespace(mixed).reshape(mixed, (*mixed.shape[:2], -1, dim))
    n_keys = (heads.shape[2] - n_values) // 2
    q, k = heads[:, :, :n_keys, :], heads[:, :, n_keys : 2 * n_keys, :]
    return ops.unit(q, eps), ops.unit(k, eps), heads[:, :, 2 * n_keys :, :]


def _rates(x: Array, w: Weights, n_keys: int) -> tuple[Array, Array]:
    """What decay and learning rate are made of, both (n_seq, n_tokens, n_values)."""
    if "ssm_ba.weight" not in w:
        return linear(x, w, "ssm_alpha"), linear(x, w, "ssm_beta")
    xp = namespace(x)
    by_key = xp.reshape(linear(x, w, "ssm_ba"), (*x.shape[:2], n_keys, -1))
    beta, alpha = (xp.reshape(a, (*x.shape[:2], -1)) for a in halves(by_key))
    return alpha, beta


def _spread(x: Array, n_head: int, *, by_key: bool) -> Array:
    """Queries or keys for every head of the values: (n_seq, n_tokens, n_head, dim)."""
    times = n_head // x.shape[2]
    xp = namespace(x)
    out: Array = xp.repeat(x, times, axis=2) if by_key else xp.tile(x, (1, 1, times, 1))
    return out


def _convolved(x: Array, kernel: Array) -> Array:
    """Every channel's weighted sum over the last tokens. x: (n_seq, n_tokens, n), (n, n_taps)."""
    xp, n_taps = namespace(x), kernel.shape[-1]
    before = xp.zeros((x.shape[0], n_taps - 1, x.shape[2]), dtype=x.dtype, device=x.device)
    padded = xp.concat([before, x], axis=1)
    out: Array = xp.zeros_like(x)
    for tap in range(n_taps):
        out += padded[:, tap : tap + x.shape[1], :] * kernel[:, tap]
    return out
