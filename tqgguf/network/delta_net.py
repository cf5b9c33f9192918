"""Linear attention by the gated delta rule (Yang et al., 2412.06464), as in Qwen3.5."""

import math

import numpy as np

from tqgguf.network import ops
from tqgguf.network.ops import Array
from tqgguf.network.step import Layer, LayerContext, Weights, linear, norm, step

_CHUNK = 64  # tokens whose effect on each other is solved for at once


def delta_net(x: Array, stream: Array | None, w: Weights, ctx: LayerContext) -> Layer:
    """Heads that remember in a matrix each. x: (n_seq, n_tokens, n_embd)."""
    yield step(("attn_qkv", "attn_gate", "ssm_beta", "ssm_alpha"), x)
    q, k, v = _projected(x, w, ctx.graph.eps)
    decay = ops.softplus(linear(x, w, "ssm_alpha") + w["ssm_dt.bias"]) * w["ssm_a"].reshape(-1)
    found = gated_delta_rule(q, k, v, decay, ops.sigmoid(linear(x, w, "ssm_beta")))
    gate = linear(x, w, "attn_gate")
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


def _projected(x: Array, w: Weights, eps: float) -> tuple[Array, Array, Array]:
    """Queries, keys and values, each (n_seq, n_tokens, n_head, dim): a short convolution's."""
    dim = w["ssm_norm.weight"].size
    mixed = ops.silu(_convolved(linear(x, w, "attn_qkv"), w["ssm_conv1d.weight"]))
    heads = mixed.reshape(*x.shape[:2], -1, dim)
    n_values = w["ssm_beta.weight"].shape[0]
    n_keys = (heads.shape[2] - n_values) // 2
    q, k, v = np.split(heads, (n_keys, 2 * n_keys), axis=2)
    q, k = (np.tile(ops.unit(a, eps), (1, 1, n_values // n_keys, 1)) for a in (q, k))
    return q, k, v


def _convolved(x: Array, kernel: Array) -> Array:
    """Every channel's weighted sum over the last tokens. x: (n_seq, n_tokens, n), (n, n_taps)."""
    n_taps = kernel.shape[-1]
    padded = np.pad(x, ((0, 0), (n_taps - 1, 0), (0, 0)))
    out = np.zeros_like(x)
    for tap in range(n_taps):
        out += padded[:, tap : tap + x.shape[1]] * kernel[:, tap]
    return out
