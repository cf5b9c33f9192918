"""The arithmetic of a transformer layer, in float32 or float64 as its inputs are.

Of NumPy's arrays or another library's: each function computes in the namespace of its input.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqgguf.kernels.arrays import in_place, inner, is_numpy, like, namespace

Array = NDArray[np.floating[Any]]  # float32 or float64, one of them throughout a pass; see above

_SCORE_BYTES = 4 << 20  # attention works on as many sequences at once as fit into this, a cache's
_MANY_SCORE_BYTES = 256 << 20  # the same where calls cost more than memory does
_QUERIES = 64  # of a sequence that look at the keys before them at once


def rms_norm(x: Array, gain: Array | None, bias: Array | None, eps: float) -> Array:
    """Gain * x / rms(x) + bias over the last axis. x: (..., n), gain and bias (n,) -> (..., n)."""
    scale = namespace(x).sqrt(inner(x, x)[..., None] / x.shape[-1] + eps)
    out: Array = x * (1 / scale)
    if gain is not None:
        out *= gain
    if bias is not None:
        out += bias
    return out


def layer_norm(x: Array, gain: Array | None, bias: Array | None, eps: float) -> Array:
    """(x - mean) / std * gain + bias over the last axis. x: (..., n) -> (..., n)."""
    return rms_norm(x - namespace(x).mean(x, axis=-1, keepdims=True), gain, bias, eps)


def unit(x: Array, eps: float) -> Array:
    """Vectors of the last axis divided by their length. x: (..., n) -> (..., n)."""
    length = namespace(x).sqrt(inner(x, x)[..., None] + eps)
    out: Array = x / length
    return out


def silu(x: Array) -> Array:
    """Multiply by its own sigmoid, element by element."""
    out = sigmoid(x)
    out *= x
    return out


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), by the tangent that cannot overflow."""
    out: Array = x * 0.5
    in_place(namespace(x).tanh)(out, out=out)
    out *= 0.5
    out += 0.5
    return out


def softplus(x: Array) -> Array:
    """log(1 + exp(x))."""
    xp = namespace(x)
    out: Array = xp.logaddexp(x, xp.zeros_like(x))
    return out


def gelu(x: Array) -> Array:
    """The tanh approximation of GELU, as ggml computes it."""
    out: Array = x * x
    out *= 0.044715
    out += 1
    out *= x
    out *= math.sqrt(2 / math.pi)
    in_place(namespace(x).tanh)(out, out=out)
    out += 1
    out *= x
    out *= 0.5
    return out


def squared_relu(x: Array) -> Array:
    """max(x, 0)^2."""
    xp = namespace(x)
    out: Array = xp.square(xp.maximum(x, xp.zeros_like(x)))
    return out


def xielu(x: Array, alpha_n: float, alpha_p: float, beta: float, eps: float) -> Array:
    """Quadratic above zero, exponential below (2411.13010); the alphas as they are trained."""
    xp = namespace(x)
    above, under = (math.log1p(math.exp(a)) for a in (alpha_p, alpha_n))
    below = (xp.expm1(xp.minimum(x, xp.full_like(x, eps))) - x) * (beta + under)
    out: Array = xp.where(x > 0, above * x * x, below) + beta * x
    return out


def clamped_silu(gate: Array, up: Array) -> Array:
    """gpt-oss' gate: both clamped at 7, the gate by sigmoid(1.702 x), up shifted by one."""
    xp, limit = namespace(gate), 7.0
    gate, up = xp.minimum(gate, xp.full_like(gate, limit)), xp.clip(up, -limit, limit)
    out: Array = gate * sigmoid(1.702 * gate) * (up + 1)
    return out


def capped(x: Array, cap: float) -> Array:
    """Bounded smoothly to +-cap: cap tanh(x / cap); x itself where the cap is 0."""
    out: Array = namespace(x).tanh(x / cap) * cap if cap else x
    return out


def softmax(x: Array) -> Array:
    """Softmax over the last axis."""
    xp = namespace(x)
    shifted: Array = xp.exp(x - xp.max(x, axis=-1, keepdims=True))
    shifted /= xp.sum(shifted, axis=-1, keepdims=True)
    return shifted


def log_softmax(x: Array) -> Array:
    """Logarithm of the softmax over the last axis."""
    xp = namespace(x)
    shifted = x - xp.max(x, axis=-1, keepdims=True)
    out: Array = shifted - xp.log(xp.sum(xp.exp(shifted), axis=-1, keepdims=True))
    return out


def rope(x: Array, cos: Array, sin: Array, *, interleaved: bool) -> Array:
    """Rotate the first 2 * cos.shape[-1] dimensions of every head by its position's angles.

    x: (n_seq, n_tokens, n_head, head_dim), cos and sin: (n_tokens, n_rot / 2) -> like x.
    interleaved pairs dimensions (0, 1), (2, 3), ...; otherwise i and i + n_rot / 2 are a pair.
    """
    xp, half = namespace(x), cos.shape[-1]
    out: Array = xp.empty_like(x)
    first = slice(0, 2 * half, 2) if interleaved else slice(0, half)
    second = slice(1, 2 * half, 2) if interleaved else slice(half, 2 * half)
    cos, sin = (like(a, x)[:, None, :] for a in (cos, sin))
    for to, other, turn in ((first, second, -sin), (second, first, sin)):
        in_place(xp.multiply)(x[..., to], cos, out=out[..., to])
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
    slopes: NDArray[np.float64] | None = None,
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
    xp = namespace(q)
    out: Array = xp.empty((n_seq, n_tokens, n_head, v.shape[-1]), dtype=q.dtype, device=q.device)
    most = _SCORE_BYTES if is_numpy(q) else _MANY_SCORE_BYTES
    step = max(1, most // _scores_of(n_head, n_tokens, xp.finfo(q.dtype).bits // 8))
    for at in range(0, n_tokens, _QUERIES):
        rows = np.arange(at, min(at + _QUERIES, n_tokens))
        first, last = max(0, at - window + 1) if window else 0, int(rows[-1])
        distance = rows[:, None] - np.arange(first, last + 1)
        bias = like(_score_bias(distance, window, slopes), q)
        for s in range(0, n_seq, step):
            part = slice(s, min(s + step, n_seq))
            asking, seen = slice(at, last + 1), slice(first, last + 1)
            queries = q[part, asking, ...] * scale
            out[part, asking, ...] = _attend(
                queries, k[part, seen, ...], v[part, seen, ...], bias, cap, sinks
            )
    return out


def score_bytes(n_seq: int, n_head: int, n_tokens: int) -> int:
    """Bytes of the float32 scores that attention on the CPU has in memory at a time."""
    size = _scores_of(n_head, n_tokens, 4)
    return size * min(n_seq, max(1, _SCORE_BYTES // size))


def _scores_of(n_head: int, n_tokens: int, number: int) -> int:
    """Bytes of a sequence's scores at a time, each number of so many."""
    return n_head * min(n_tokens, _QUERIES) * n_tokens * number


def _score_bias(
    distance: NDArray[np.intp], window: int, slopes: NDArray[np.float64] | None
) -> NDArray[np.floating[Any]]:
    """What is added to scores: (1 or n_head, n_queries, n_keys), -inf for what is not seen."""
    hidden = (distance < 0) | (distance >= window if window else False)
    bias = np.where(hidden, -np.inf, 0.0)[None]
    return bias if slopes is None else bias - slopes[:, None, None] * np.abs(distance)


def _attend(q: Array, k: Array, v: Array, bias: Array, cap: float, sinks: Array | None) -> Array:
    """q: (n_seq, n_queries, n_head, dim), k, v: (n_seq, n_keys, n_kv, dim) -> like q."""
    xp, (n_seq, n_queries, n_head, dim), n_kv = namespace(q), q.shape, k.shape[2]
    groups = (n_kv, n_head // n_kv, n_queries)
    rows = xp.permute_dims(xp.reshape(q, (n_seq, n_queries, *groups[:2], dim)), (0, 2, 3, 1, 4))
    rows = xp.reshape(rows, (n_seq, n_kv, -1, dim))  # of all heads that share keys, in turn
    scores = capped(rows @ xp.permute_dims(k, (0, 2, 3, 1)), cap)
    scores = xp.reshape(scores, (n_seq, *groups, -1))
    scores += xp.reshape(bias, (*groups, -1)) if bias.shape[0] == n_head else bias
    total = _exponentials(scores, None if sinks is None else xp.reshape(sinks, (*groups[:2], 1, 1)))
    mixed = xp.reshape(scores, (n_seq, n_kv, -1, scores.shape[-1])) @ xp.permute_dims(
        v, (0, 2, 1, 3)
    )
    mixed = xp.reshape(mixed, (n_seq, *groups, -1))
    mixed /= total
    in_order = xp.permute_dims(mixed, (0, 3, 1, 2, 4))
    joined: Array = xp.reshape(in_order, (n_seq, n_queries, n_head, -1))
    return joined


def _exponentials(scores: Array, sinks: Array | None) -> Array:
    """Exponentials in place, and what they sum up to with one more score that has no column."""
    xp = namespace(scores)
    largest = xp.max(scores, axis=-1, keepdims=True)
    if sinks is not None:
        largest = xp.maximum(largest, sinks)
    scores -= largest
    in_place(xp.exp)(scores, out=scores)
    total: Array = xp.sum(scores, axis=-1, keepdims=True)
    if sinks is not None:
        total += xp.exp(sinks - largest)
    return total
