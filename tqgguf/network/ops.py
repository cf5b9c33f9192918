"""The arithmetic of a transformer layer in NumPy, in float32 or float64 as its inputs are."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]  # float32 or float64, one of them throughout a pass

_SCORE_BYTES = 64 << 20  # attention works on as many sequences at once as fit into this


def rms_norm(x: Array, gain: Array, eps: float) -> Array:
    """Divide by the root mean square of the last axis: (..., n), gain (n,) -> (..., n)."""
    scale = np.sqrt(np.einsum("...i,...i->...", x, x)[..., None] / x.shape[-1] + _like(x, eps))
    out: Array = x / scale * gain
    return out


def layer_norm(x: Array, gain: Array, bias: Array | None, eps: float) -> Array:
    """(x - mean) / std * gain + bias over the last axis. x: (..., n) -> (..., n)."""
    centred = x - x.mean(-1, keepdims=True)
    normed = rms_norm(centred, gain, eps)
    return normed if bias is None else normed + bias


def silu(x: Array) -> Array:
    """Multiply by its own sigmoid, element by element."""
    return x * sigmoid(x)


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), by the tangent that cannot overflow."""
    half = _like(x, 0.5)
    out: Array = half + half * np.tanh(x * half)
    return out


def gelu(x: Array) -> Array:
    """The tanh approximation of GELU, as ggml computes it."""
    inner = _like(x, math.sqrt(2 / math.pi)) * (x + _like(x, 0.044715) * x * x * x)
    out: Array = _like(x, 0.5) * x * (1 + np.tanh(inner))
    return out


def softmax(x: Array) -> Array:
    """Softmax over the last axis."""
    shifted: Array = np.exp(x - x.max(-1, keepdims=True))
    shifted /= shifted.sum(-1, keepdims=True)
    return shifted


def log_softmax(x: Array) -> Array:
    """Logarithm of the softmax over the last axis."""
    shifted = x - x.max(-1, keepdims=True)
    out: Array = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return out


def rope(x: Array, cos: Array, sin: Array, *, interleaved: bool) -> Array:
    """Rotate the first 2 * cos.shape[-1] dimensions of every head by its position's angles.

    x: (n_seq, n_tokens, n_head, head_dim), cos and sin: (n_tokens, n_rot / 2) -> like x.
    interleaved pairs dimensions (0, 1), (2, 3), ...; otherwise i and i + n_rot / 2 are a pair.
    """
    half = cos.shape[-1]
    first = slice(0, 2 * half, 2) if interleaved else slice(0, half)
    second = slice(1, 2 * half, 2) if interleaved else slice(half, 2 * half)
    cos, sin = cos[:, None, :], sin[:, None, :]
    out = x.copy()
    out[..., first] = x[..., first] * cos - x[..., second] * sin
    out[..., second] = x[..., first] * sin + x[..., second] * cos
    return out


def causal_attention(q: Array, k: Array, v: Array, *, scale: float) -> Array:
    """Softmax attention in which every token sees itself and those before it.

    q: (n_seq, n_tokens, n_head, dim), k and v: (n_seq, n_tokens, n_head_kv, dim); head i reads
    kv head i // (n_head / n_head_kv) -> (n_seq, n_tokens, n_head * dim of v).
    """
    n_seq, n_tokens, n_head, _ = q.shape
    per_sequence = n_head * n_tokens * n_tokens * q.itemsize
    step = max(1, _SCORE_BYTES // per_sequence)
    out = np.empty((n_seq, n_tokens, n_head * v.shape[-1]), q.dtype)
    future = np.triu(np.ones((n_tokens, n_tokens), bool), 1)
    for at in range(0, n_seq, step):
        part = slice(at, at + step)
        out[part] = _attend(q[part] * _like(q, scale), k[part], v[part], future)
    return out


def _attend(q: Array, k: Array, v: Array, future: NDArray[np.bool_]) -> Array:
    n_seq, n_tokens, n_head, dim = q.shape
    n_kv = k.shape[2]
    grouped = q.reshape(n_seq, n_tokens, n_kv, n_head // n_kv, dim).transpose(0, 2, 3, 1, 4)
    keys = k.transpose(0, 2, 3, 1)[:, :, None]  # (n_seq, n_kv, 1, dim, n_tokens)
    values = v.transpose(0, 2, 1, 3)[:, :, None]
    scores = np.matmul(grouped, keys)
    scores[..., future] = -np.inf
    mixed = np.matmul(softmax(scores), values)  # (n_seq, n_kv, group, n_tokens, dim)
    joined: Array = mixed.transpose(0, 3, 1, 2, 4).reshape(n_seq, n_tokens, -1)
    return joined


def _like(x: Array, value: float) -> Any:
    """A constant in x's dtype, so that float32 stays float32."""
    return x.dtype.type(value)
