"""Linear attention by the gated delta rule (Yang et al., 2412.06464), as in Qwen3.5."""

import math

import numpy as np

from tqgguf.network import ops
from tqgguf.network.ops import Array
from tqgguf.network.step import Layer, LayerContext, Weights, linear, norm, step

_PROJECTIONS = ("attn_qkv", "attn_gate", "ssm_in", "ssm_beta", "ssm_alpha", "ssm_ba")
_CHUNK = 64  # tokens whose effect on each other is solved for at once


def delta_net(x: Array, stream: Array | None, w: Weights, ctx: LayerContext) -> Layer:
    """Heads that remember in a matrix each. x: (n_seq, n_tokens, n_embd).

    Values' heads i, i + n, i + 2n, ... share the key of n; in graphs whose projections lie key by
    key, those of one key are neighbours.
    """
    yield step(tuple(name for name in _PROJECTIONS if f"{name}.weight" in w), x)
    mixed, gate = _mixed(x, w)
    q, k, v = _heads(mixed, w, ctx.graph.eps)
    alpha, beta = _rates(x, w, k.shape[2])
    k, q = (_spread(a, v.shape[2], by_key="ssm_ba.weight" in w) for a in (k, q))
    decay = ops.softplus(alpha + w["ssm_dt.bias"]) * w["ssm_a"].reshape(-1)
    found = gated_delta_rule(q, k, v, decay, ops.sigmoid(beta))
    normed = norm(found, w, "ssm_norm", ctx.graph).reshape(gate.shape)
    normed *= ops.silu(gate)
    yield step(("ssm_out",), normed, stream)
    return linear(normed, w, "ssm_out")


def gated_delta_rule(q: Array, k: Array, v: Array, decay: Array, beta: Array) -> Array:
    """S <- e^decay S + beta k (v - e^decay S^T k)^T and out = S^T q / sqrt(dim), token by token.

    q, k, v: (n_seq, n_tokens, n_head, dim), decay <= 0 and beta: (n_seq, n_tokens, n_head) -> like
    v. Computed some tokens at a time: what they write is the solution of one triangular system.
    """
    q, k, v = (np.moveaxis(a, 1, 2) for a in (q, k, v))
    decay, beta = (np.moveaxis(a, 1, 2) for a in (decay, beta))
    q = q * ops.like(q, 1 / math.sqrt(q.shape[-1]))
    memory = np.zeros((*v.shape[:2], k.shape[-1], v.shape[-1]), v.dtype)
    out = np.empty_like(v)
    for at in range(0, v.shape[2], _CHUNK):
        part = (slice(None), slice(None), slice(at, at + _CHUNK))
        out[part], memory = _chunk(q[part], k[part], v[part], decay[part], beta[part], memory)
    return np.moveaxis(out, 2, 1)


def _chunk(
    q: Array, k: Array, v: Array, decay: Array, beta: Array, memory: Array
) -> tuple[Array, Array]:
    """What some tokens read, (..., n, dim), and the memory after them, (..., dim, dim)."""
    total = np.cumsum(decay, axis=-1)
    lower = np.tri(total.shape[-1], dtype=bool)
    gone = np.exp(np.where(lower, total[..., :, None] - total[..., None, :], -np.inf))
    since = np.exp(total)[..., None]  # what is left of the memory at each token
    keys = np.swapaxes(k, -1, -2)
    system = np.tril(k @ keys * gone, -1) * beta[..., None]
    system[..., range(total.shape[-1]), range(total.shape[-1])] = 1
    written = np.linalg.solve(system, (v - since * (k @ memory)) * beta[..., None])
    read = since * (q @ memory) + (q @ keys * gone) @ written
    left = np.exp(total[..., -1:] - total)[..., None]
    memory = since[..., -1:, :] * memory + np.swapaxes(k * left, -1, -2) @ written
    return read, memory


def _mixed(x: Array, w: Weights) -> tuple[Array, Array]:
    """What is convolved, queries, keys and values in order, and the gate: (n_seq, n_tokens, n)."""
    if "ssm_in.weight" not in w:
        return linear(x, w, "attn_qkv"), linear(x, w, "attn_gate")
    dim, n_values = w["ssm_norm.weight"].size, w["ssm_a"].size
    n_keys = w["ssm_conv1d.weight"].shape[0] // dim // 2 - n_values // 2
    own = n_values // n_keys * dim
    by_key = linear(x, w, "ssm_in").reshape(*x.shape[:2], n_keys, -1)
    parts = np.split(by_key, (dim, 2 * dim, 2 * dim + own), axis=-1)
    q, k, v, gate = (a.reshape(*x.shape[:2], -1) for a in parts)
    return np.concatenate([q, k, v], axis=-1), gate


def _heads(mixed: Array, w: Weights, eps: float) -> tuple[Array, Array, Array]:
    """Queries, keys and values, each (n_seq, n_tokens, n_head, dim): a short convolution's."""
    mixed = ops.silu(_convolved(mixed, w["ssm_conv1d.weight"]))
    heads = mixed.reshape(*mixed.shape[:2], -1, w["ssm_norm.weight"].size)
    n_keys = (heads.shape[2] - w["ssm_a"].size) // 2
    q, k, v = np.split(heads, (n_keys, 2 * n_keys), axis=2)
    return ops.unit(q, eps), ops.unit(k, eps), v


def _rates(x: Array, w: Weights, n_keys: int) -> tuple[Array, Array]:
    """What decay and learning rate are made of, both (n_seq, n_tokens, n_values)."""
    if "ssm_ba.weight" not in w:
        return linear(x, w, "ssm_alpha"), linear(x, w, "ssm_beta")
    by_key = linear(x, w, "ssm_ba").reshape(*x.shape[:2], n_keys, -1)
    beta, alpha = (a.reshape(*x.shape[:2], -1) for a in np.split(by_key, 2, axis=-1))
    return alpha, beta


def _spread(x: Array, n_head: int, *, by_key: bool) -> Array:
    """Queries or keys for every head of the values: (n_seq, n_tokens, n_head, dim)."""
    times = n_head // x.shape[2]
    return np.repeat(x, times, axis=2) if by_key else np.tile(x, (1, 1, times, 1))


def _convolved(x: Array, kernel: Array) -> Array:
    """Every channel's weighted sum over the last tokens. x: (n_seq, n_tokens, n), (n, n_taps)."""
    n_taps = kernel.shape[-1]
    padded = np.pad(x, ((0, 0), (n_taps - 1, 0), (0, 0)))
    out = np.zeros_like(x)
    for tap in range(n_taps):
        out += padded[:, tap : tap + x.shape[1]] * kernel[:, tap]
    return out
