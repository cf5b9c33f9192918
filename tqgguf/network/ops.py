"""The arithmetic of a transformer layer in NumPy, in float32 or float64 as its inputs are."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]  # float32 or float64, one of them throughout a pass

_SCORE_BYTES = 4 << 20  # attention works on as many sequences at once as fit into this
_QUERIES = 64  # of a sequence that look at the keys before them at once


def rms_norm(x: Array, gain: Array | None, bias: Array | None, eps: float) -> Array:
    """Gain * x / rms(x) + bias over the last axis. x: (..., n), gain and bias (n,) -> (..., n)."""
    scale = np.sqrt(np.einsum("...i,...i->...", x, x)[..., None] / x.shape[-1] + like(x, eps))
    out: Array = x * (1 / scale)
    if gain is not None:
        out *= gain
    if bias is not None:
        out += bias
    return out


def layer_norm(x: Array, gain: Array | None, bias: Array | None, eps: float) -> Array:
    """(x - mean) / std * gain + bias over the last axis. x: (..., n) -> (..., n)."""
    return rms_norm(x - x.mean(-1, keepdims=True), gain, bias, eps)


def unit(x: Array, eps: float) -> Array:
    """Vectors of the last axis divided by their length. x: (..., n) -> (..., n)."""
    length = np.sqrt(np.einsum("...i,...i->...", x, x)[..., None] + like(x, eps))
    out: Array = x / length
    return out


def silu(x: Array) -> Array:
    """Multiply by its own sigmoid, element by element."""
    out = sigmoid(x)
    out *= x
    return out


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), by the tangent that cannot overflow."""
    half = like(x, 0.5)
    out: Array = x * half
    np.tanh(out, out=out)
    out *= half
    out += half
    return out


def softplus(x: Array) -> Array:
    """log(1 + exp(x))."""
    out: Array = np.logaddexp(x, like(x, 0))
    return out


def gelu(x: Array) -> Array:
    """The tanh approximation of GELU, as ggml computes it."""
    out: Array = x * x
    out *= like(x, 0.044715)
    out += 1
    out *= x
    out *= like(x, math.sqrt(2 / math.pi))
    np.tanh(out, out=out)
    out += 1
    out *= x
    out *= like(x, 0.5)
    return out


def squared_relu(x: Array) -> Array:
    """max(x, 0)^2."""
    out: Array = np.square(np.maximum(x, like(x, 0)))
    return out


def xielu(x: Array, alpha_n: float, alpha_p: float, beta: float, eps: float) -> Array:
    """Quadratic above zero, exponential below (2411.13010); the alphas as they are trained."""
    above, under = (math.log1p(math.exp(a)) for a in (alpha_p, alpha_n))
    below = (np.expm1(np.minimum(x, like(x, eps))) - x) * like(x, beta + under)
    out: Array = np.where(x > 0, like(x, above) * x * x, below) + like(x, beta) * x
    return out


def clamped_silu(gate: Array, up: Array) -> Array:
    """gpt-oss' gate: both clamped at 7, the gate by sigmoid(1.702 x), up shifted by one."""
    limit = like(gate, 7.0)
    gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
    out: Array = gate * sigmoid(like(gate, 1.702) * gate) * (up + 1)
    return out


def capped(x: Array, cap: float) -> Array:
    """Bounded smoothly to +-cap: cap tanh(x / cap); x itself where the cap is 0."""
    return like(x, cap) * np.tanh(x / like(x, cap)) if cap else x


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
    out = np.empty_like(x)
    for to, other, turn in ((first, second, -sin), (second, first, sin)):
        np.multiply(x[..., to], cos, out=out[..., to])
        out[..., to] += x[..., other] * turn
    out[..., 2 * half :] = x[..., 2 * half :]
    return out


def alibi_slopes(n_head: int, max_bias: float) -> NDArray[np.float64]:
    """How fast every head's scores fall with the distance (Press et al., 2108.12409): (n_head,)."""
    power = 1 << (n_head.bit_length() - 1)
    steps = np.arange(1, power + 1) * (max_bias / power)
    between = np.arange(1, 2 * (n_head - power), 2) * (max_bias / 2 / power)
    return np.asarray(2.0 ** -np.concatenate([steps, between]))


def causal_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    scale: float,
    window: int = 0,
    cap: float = 0.0,
    slopes: Array | None = None,
    sinks: Array | None = None,
) -> Array:
    """Softmax attention in which every token sees itself and those before it.

    q: (n_seq, n_tokens, n_head, dim), k and v: (n_seq, n_tokens, n_head_kv, dim); head i reads
    kv head i // (n_head / n_head_kv) -> (n_seq, n_tokens, n_head, dim of v). window: it sees no
    more tokens than that (0: all). cap: bound of the scores (0: none). slopes: (n_head,), what the
    scores lose per token of distance. sinks: (n_head,), one more score that takes a share for
    nothing.
    """
    n_seq, n_tokens, n_head, _ = q.shape
    out = np.empty((n_seq, n_tokens, n_head, v.shape[-1]), q.dtype)
    step = max(1, _SCORE_BYTES // (n_head * min(n_tokens, _QUERIES) * n_tokens * q.itemsize))
    for at in range(0, n_tokens, _QUERIES):
        rows = np.arange(at, min(at + _QUERIES, n_tokens))
        first = max(0, at - window + 1) if window else 0
        distance = rows[:, None] - np.arange(first, rows[-1] + 1)
        bias = _score_bias(distance, window, slopes).astype(q.dtype)
        for s in range(0, n_seq, step):
            part, seen = slice(s, s + step), slice(first, int(rows[-1]) + 1)
            queries = q[part, rows[0] : rows[-1] + 1] * like(q, scale)
            out[part, rows[0] : rows[-1] + 1] = _attend(
                queries, k[part, seen], v[part, seen], bias, cap, sinks
            )
    return out


def _score_bias(
    distance: NDArray[np.intp], window: int, slopes: Array | None
) -> NDArray[np.floating[Any]]:
    """What is added to scores: (1 or n_head, n_queries, n_keys), -inf for what is not seen."""
    hidden = (distance < 0) | (distance >= window if window else False)
    bias = np.where(hidden, -np.inf, 0.0)[None]
    return bias if slopes is None else bias - slopes[:, None, None] * np.abs(distance)


def _attend(q: Array, k: Array, v: Array, bias: Array, cap: float, sinks: Array | None) -> Array:
    """q: (n_seq, n_queries, n_head, dim), k, v: (n_seq, n_keys, n_kv, dim) -> like q."""
    n_seq, n_queries, n_head, dim = q.shape
    n_kv = k.shape[2]
    groups = (n_kv, n_head // n_kv, n_queries)
    rows = q.reshape(n_seq, n_queries, *groups[:2], dim).transpose(0, 2, 3, 1, 4)
    rows = rows.reshape(n_seq, n_kv, -1, dim)  # of all heads that share keys, one after the other
    scores = capped(rows @ k.transpose(0, 2, 3, 1), cap).reshape(n_seq, *groups, -1)
    scores += bias.reshape(*groups, -1) if len(bias) == n_head else bias
    total = _exponentials(scores, None if sinks is None else sinks.reshape(*groups[:2], 1, 1))
    mixed = scores.reshape(n_seq, n_kv, -1, scores.shape[-1]) @ v.transpose(0, 2, 1, 3)
    mixed = mixed.reshape(n_seq, *groups, -1)
    mixed /= total
    joined: Array = mixed.transpose(0, 3, 1, 2, 4).reshape(n_seq, n_queries, n_head, -1)
    return joined


def _exponentials(scores: Array, sinks: Array | None) -> Array:
    """Exponentials in place, and what they sum up to with one more score that has no column."""
    largest = scores.max(-1, keepdims=True)
    if sinks is not None:
        largest = np.maximum(largest, sinks)
    scores -= largest
    np.exp(scores, out=scores)
    total: Array = scores.sum(-1, keepdims=True)
    if sinks is not None:
        total += np.exp(sinks - largest)
    return total


def like(x: Array, value: float) -> Any:
    """A constant in x's dtype, so that float32 stays float32."""
    return x.dtype.type(value)
