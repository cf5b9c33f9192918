"""Softmax attention: of heads side by side, and of heads that share a latent (MLA)."""

from collections.abc import Generator

from tqgguf.kernels.arrays import like, namespace
from tqgguf.network import ops
from tqgguf.network.graph import Graph
from tqgguf.network.layer import (
    Layer,
    LayerContext,
    Projection,
    Weights,
    cut,
    halves,
    linear,
    norm,
    product,
    projection,
)
from tqgguf.network.ops import Array

_Heads = tuple[Array, Array, Array]  # queries, keys and values, (n_seq, n_tokens, heads, size)
_SPLIT = ("attn_q", "attn_k", "attn_v")


def attention(x: Array, stream: Array | None, w: Weights, ctx: LayerContext) -> Layer:
    """Heads with keys and values of their own, or of a group. x: (n_seq, n_tokens, n_embd)."""
    graph = ctx.graph
    q, k, v = yield from _project(x, w, graph)
    gate = None
    if graph.row.gated_attention:
        q, gate = halves(_heads(q, graph.n_head))
    q, k = (_head_norm(a, w, name, graph) for a, name in ((q, "attn_q_norm"), (k, "attn_k_norm")))
    mixed = _flat(_attend(_turned(q, ctx), _turned(k, ctx), v, w, ctx))
    if gate is not None:
        mixed *= ops.sigmoid(_flat(gate))
    return (yield from product(mixed, w, "attn_output", stream))


def latent_attention(x: Array, stream: Array | None, w: Weights, ctx: LayerContext) -> Layer:
    """Heads whose keys and values are decompressed from one latent (DeepSeek-V2, 2405.04434).

    The latent serves as the one key and value of all heads: what decompresses keys is applied to
    the queries, what decompresses values to what they found. Where the two lie in one matrix
    (attn_kv_b), keys and values are decompressed.
    """
    first = "attn_q_a" if "attn_q_a.weight" in w else "attn_q"
    yield projection((first, "attn_kv_a_mqa"), x)
    q, compressed = linear(x, w, first), linear(x, w, "attn_kv_a_mqa")
    if first == "attn_q_a":
        q = norm(q, w, "attn_q_a_norm", ctx.graph)
        yield projection(("attn_q_b",), q)
        q = linear(q, w, "attn_q_b")
    q = _heads(q, ctx.graph.n_head)
    latent, position = cut(compressed, w["attn_kv_a_norm.weight"].shape[-1])
    latent = norm(latent, w, "attn_kv_a_norm", ctx.graph)[:, :, None, :]
    parts = latent, _turned(position[:, :, None, :], ctx)
    whole = "attn_kv_b.weight" in w
    mixed = yield from (_decompressed if whole else _absorbed)(q, *parts, w, ctx)
    mixed = _flat(mixed)
    return (yield from product(mixed, w, "attn_output", stream))


def _project(x: Array, w: Weights, graph: Graph) -> Generator[Projection, Array | None, _Heads]:
    """Queries, keys and values, the queries with their gates if they have some."""
    if "attn_qkv.weight" in w:
        yield projection(("attn_qkv",), x)
        joined = linear(x, w, "attn_qkv")
        if "attn_q.bias" in w:
            joined += namespace(x).concat([w[f"{name}.bias"] for name in _SPLIT])
        n_q = graph.n_head * graph.head_dim * (1 + graph.row.gated_attention)
        q, k, v = cut(joined, n_q, n_q + graph.n_head_kv * graph.head_dim)
    else:
        yield projection(_SPLIT, x)
        q, k, v = (linear(x, w, name) for name in _SPLIT)
    heads = graph.n_head, graph.n_head_kv, graph.n_head_kv
    if graph.projection_clamp:
        limit = graph.projection_clamp
        q, k, v = (namespace(x).clip(a, -limit, limit) for a in (q, k, v))
    q, k, v = (_heads(a, n) for a, n in zip((q, k, v), heads, strict=True))
    return q, k, v


def _head_norm(x: Array, w: Weights, name: str, graph: Graph) -> Array:
    """A norm of each head, or of all heads together if its gain is that long."""
    gain = w.get(f"{name}.weight")
    if gain is None:
        return x
    together = gain.shape == (x.shape[-2] * x.shape[-1],)
    if not together:
        return norm(x, w, name, graph)
    normed: Array = namespace(x).reshape(norm(_flat(x), w, name, graph), x.shape)
    return normed


def _turned(x: Array, ctx: LayerContext) -> Array:
    """Queries or keys turned by their positions; what a head has beyond that goes through."""
    turns = ctx.angles
    if turns is None:
        return x
    return ops.rope(x, turns.cos, turns.sin, interleaved=turns.interleaved)


def _attend(q: Array, k: Array, v: Array, w: Weights, ctx: LayerContext) -> Array:
    graph = ctx.graph
    if ctx.temperatures is not None:
        q = q * like(ctx.temperatures, q)
    slopes = None
    if graph.max_alibi_bias:
        slopes = ops.alibi_slopes(graph.n_head, graph.max_alibi_bias)
    return ops.causal_attention(
        q,
        k,
        v,
        scale=ctx.scale,
        window=ctx.window,
        cap=graph.score_cap,
        slopes=slopes,
        sinks=w.get("attn_sinks.weight"),
    )


def _absorbed(
    q: Array, latent: Array, position: Array, w: Weights, ctx: LayerContext
) -> Generator[Projection, Array | None, Array]:
    """Attention among latents: (n_seq, n_tokens, n_head, value size)."""
    concat = namespace(q).concat
    own, turning = cut(q, q.shape[-1] - position.shape[-1])
    own = yield from _each_head(own, "attn_k_b", w)
    q = concat([own, _turned(turning, ctx)], axis=-1)
    found = _attend(q, concat([latent, position], axis=-1), latent, w, ctx)
    return (yield from _each_head(found, "attn_v_b", w))


def _decompressed(
    q: Array, latent: Array, position: Array, w: Weights, ctx: LayerContext
) -> Generator[Projection, Array | None, Array]:
    """Attention among decompressed keys and values: (n_seq, n_tokens, n_head, value size)."""
    xp, n_own = namespace(q), q.shape[-1] - position.shape[-1]
    own, turning = cut(q, n_own)
    q = xp.concat([own, _turned(turning, ctx)], axis=-1)
    yield projection(("attn_kv_b",), latent)
    k, v = cut(xp.reshape(linear(latent, w, "attn_kv_b"), (*q.shape[:3], -1)), n_own)
    k = xp.concat([k, xp.broadcast_to(position, (*k.shape[:3], position.shape[-1]))], axis=-1)
    return _attend(q, k, v, w, ctx)


def _each_head(x: Array, name: str, w: Weights) -> Generator[Projection, Array | None, Array]:
    """Every head times a matrix of its own: (..., n_head, n_in) -> (..., n_head, n_out)."""
    xp, n_head = namespace(x), x.shape[-2]
    each = xp.reshape(xp.moveaxis(x, -2, 0), (n_head, -1, x.shape[-1]))
    yield Projection((name,), tuple(each[h, ...] for h in range(n_head)))
    out = each @ xp.permute_dims(w[f"{name}.weight"], (0, 2, 1))
    heads: Array = xp.moveaxis(xp.reshape(out, (n_head, *x.shape[:-2], -1)), 0, -2)
    return heads


def _heads(x: Array, n_head: int) -> Array:
    heads: Array = namespace(x).reshape(x, (*x.shape[:2], n_head, -1))
    return heads


def _flat(x: Array) -> Array:
    flat: Array = namespace(x).reshape(x, (*x.shape[:2], -1))
    return flat
