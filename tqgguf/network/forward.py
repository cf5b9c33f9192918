"""A reference forward pass, one layer's weights in memory at a time.

A layer is a generator: before each group of matrices is used it yields their common input, and it
reads the weights only after it was resumed. Whoever drives it may therefore measure the input,
replace the matrices by quantized ones, and let the layer go on with those: calibration needs
nothing else.
"""

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tqgguf.models.model import Model
from tqgguf.network import ops
from tqgguf.network.graph import Graph, read_graph, rotary
from tqgguf.network.ops import Array

Tokens = NDArray[np.int32]
Weights = Mapping[str, Array]  # a layer's tensors by their name without "blk.N."


@dataclass(frozen=True)
class Step:
    """The input that some matrices of a layer are about to be multiplied with.

    inputs has one (n_tokens, n_in) array, or one for every expert of stacked matrices. stream is
    what the product will be added to, (n_tokens, n_embd), where it is added directly.
    """

    matrices: tuple[str, ...]
    inputs: tuple[Array, ...]
    stream: Array | None = None


Layer = Generator[Step, None, Array]


@dataclass(frozen=True)
class Context:
    """What every layer shares: the graph and the rotary angles for the positions in use."""

    graph: Graph
    cos: Array
    sin: Array


def context(model: Model, n_tokens: int, dtype: DTypeLike = np.float32) -> Context:
    """The shared part of a pass over sequences of n_tokens."""
    graph = read_graph(model)
    cos, sin = rotary(model, graph, n_tokens)
    return Context(graph, cos.astype(dtype), sin.astype(dtype))


def logits(model: Model, tokens: Tokens, *, dtype: DTypeLike = np.float32) -> Array:
    """Logits of every position. tokens: (n_seq, n_tokens) int -> (n_seq, n_tokens, n_vocab).

    Raises:
        UnsupportedModelError: there is no forward pass for the model's architecture.
    """
    return head(model, hidden_states(model, tokens, dtype=dtype))


def hidden_states(model: Model, tokens: Tokens, *, dtype: DTypeLike = np.float32) -> Array:
    """The normed states that the head reads. tokens: (n_seq, n_tokens) -> (..., n_embd)."""
    ctx = context(model, tokens.shape[1], dtype)
    x = embed(model, tokens, dtype=dtype)
    for weights in layers(model, ctx.graph, dtype=dtype):
        x = drain(layer(x, weights, ctx))
    return final_norm(model, x)


def embed(model: Model, tokens: Tokens, *, dtype: DTypeLike = np.float32) -> Array:
    """Look the tokens up. tokens: (n_seq, n_tokens) int -> (n_seq, n_tokens, n_embd)."""
    graph = read_graph(model)
    table = model.tensors["token_embd.weight"]
    unique, inverse = np.unique(tokens, return_inverse=True)
    rows = np.concatenate([table.rows(int(i), int(i) + 1) for i in unique])
    x: Array = rows.astype(dtype)[inverse.reshape(tokens.shape)]
    if graph.embedding_scale != 1:
        x = x * x.dtype.type(graph.embedding_scale)
    if "position_embd.weight" in model.tensors:
        x = x + model.tensors["position_embd.weight"].rows(0, tokens.shape[1]).astype(dtype)
    return x


def layers(model: Model, graph: Graph, *, dtype: DTypeLike = np.float32) -> Iterator[Weights]:
    """The weights of one layer after the other."""
    for index in range(graph.n_layer):
        yield layer_weights(model, index, dtype=dtype)


def layer_weights(model: Model, index: int, *, dtype: DTypeLike = np.float32) -> dict[str, Array]:
    """All tensors of layer `index`, by their name without "blk.N."."""
    prefix = f"blk.{index}."
    return {
        name.removeprefix(prefix): tensor.read().astype(dtype)
        for name, tensor in model.tensors.items()
        if name.startswith(prefix)
    }


class LazyWeights(Mapping[str, Array]):
    """The tensors of a layer, each read when it is used and not kept."""

    def __init__(self, model: Model, index: int, dtype: DTypeLike) -> None:
        self.model, self.prefix, self.dtype = model, f"blk.{index}.", dtype

    def __getitem__(self, name: str) -> Array:
        return self.model.tensors[self.prefix + name].read().astype(self.dtype)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.prefix + name in self.model.tensors

    def __iter__(self) -> Iterator[str]:
        names = (n for n in self.model.tensors if n.startswith(self.prefix))
        return (n.removeprefix(self.prefix) for n in names)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def final_norm(model: Model, x: Array) -> Array:
    """The norm before the head. x: (..., n_embd) -> (..., n_embd)."""
    names = ("output_norm.weight", "output_norm.bias")
    weights = {n: model.tensors[n].read().astype(x.dtype) for n in names if n in model.tensors}
    return _norm(x, weights, "output_norm", read_graph(model))


def head_name(model: Model) -> str:
    """The tensor that serves as head: `output.weight`, or the embedding of a tied model."""
    return "output.weight" if "output.weight" in model.tensors else "token_embd.weight"


def head(model: Model, normed: Array, *, chunk: int = 16384) -> Array:
    """Logits from normed states, the head read `chunk` rows at a time.

    normed: (..., n_embd) -> (..., n_vocab).
    """
    tensor, graph = model.tensors[head_name(model)], read_graph(model)
    parts = [
        normed @ tensor.rows(at, min(at + chunk, tensor.n_rows)).astype(normed.dtype).T
        for at in range(0, tensor.n_rows, chunk)
    ]
    out = np.concatenate(parts, axis=-1)
    if "output.bias" in model.tensors:
        out += model.tensors["output.bias"].read().astype(normed.dtype)
    return out / out.dtype.type(graph.logit_scale) if graph.logit_scale != 1 else out


def drain(generator: Layer) -> Array:
    """Run a layer to its end, whatever it yields, and return its output."""
    while True:
        try:
            next(generator)
        except StopIteration as end:
            out: Array = end.value
            return out


def layer(x: Array, w: Weights, ctx: Context) -> Layer:
    """One transformer layer. x: (n_seq, n_tokens, n_embd); see the module for what it yields."""
    scale = x.dtype.type(ctx.graph.residual_scale)
    x = x + scale * (yield from _attention(_norm(x, w, "attn_norm", ctx.graph), x / scale, w, ctx))
    normed = _norm(x, w, "ffn_norm", ctx.graph)
    if "ffn_gate_inp.weight" in w:
        return x + scale * (yield from _experts(normed, w, ctx))
    return x + scale * (yield from _feed_forward(normed, x / scale, w, ctx))


def _attention(x: Array, stream: Array, w: Weights, ctx: Context) -> Layer:
    graph = ctx.graph
    q, k, v = yield from _project(x, w, graph)
    q = _norm(q, w, "attn_q_norm", graph) if "attn_q_norm.weight" in w else q
    k = _norm(k, w, "attn_k_norm", graph) if "attn_k_norm.weight" in w else k
    if graph.row.rope != "none":
        interleaved = graph.row.rope == "interleaved"
        q = ops.rope(q, ctx.cos, ctx.sin, interleaved=interleaved)
        k = ops.rope(k, ctx.cos, ctx.sin, interleaved=interleaved)
    mixed = ops.causal_attention(q, k, v, scale=graph.attention_scale)
    yield _step(("attn_output",), mixed, stream)
    return _linear(mixed, w, "attn_output")


def _project(
    x: Array, w: Weights, graph: Graph
) -> Generator[Step, None, tuple[Array, Array, Array]]:
    """Queries, keys and values, each (n_seq, n_tokens, heads, head_dim)."""
    if "attn_qkv.weight" in w:
        yield _step(("attn_qkv",), x)
        joined = _linear(x, w, "attn_qkv")
        ends = graph.n_head * graph.head_dim, (graph.n_head + graph.n_head_kv) * graph.head_dim
        q, k, v = np.split(joined, ends, axis=-1)
    else:
        yield _step(("attn_q", "attn_k", "attn_v"), x)
        q, k, v = (_linear(x, w, name) for name in ("attn_q", "attn_k", "attn_v"))
    heads = [a.reshape(*x.shape[:2], -1, graph.head_dim) for a in (q, k, v)]
    return heads[0], heads[1], heads[2]


def _feed_forward(
    x: Array, stream: Array | None, w: Weights, ctx: Context, suffix: str = ""
) -> Layer:
    up, gate, down = f"ffn_up{suffix}", f"ffn_gate{suffix}", f"ffn_down{suffix}"
    gated = f"{gate}.weight" in w
    yield _step((gate, up) if gated else (up,), x)
    inner = _activate(_linear(x, w, gate if gated else up), ctx.graph)
    if gated:
        inner *= _linear(x, w, up)
    yield _step((down,), inner, stream)
    return _linear(inner, w, down)


def _experts(x: Array, w: Weights, ctx: Context) -> Layer:
    """A mixture of experts; every token goes through its n_expert_used best ones."""
    flat = x.reshape(-1, x.shape[-1])
    yield _step(("ffn_gate_inp",), x)
    chosen, share = _route(flat, w, ctx.graph)
    members = [np.nonzero(chosen == e) for e in range(len(w["ffn_up_exps.weight"]))]
    inputs = tuple(flat[token] for token, _ in members)
    yield Step(("ffn_gate_exps", "ffn_up_exps"), inputs)
    gate, up = w["ffn_gate_exps.weight"], w["ffn_up_exps.weight"]
    inner = tuple(_activate(a @ gate[e].T, ctx.graph) * (a @ up[e].T) for e, a in enumerate(inputs))
    yield Step(("ffn_down_exps",), inner)
    out = np.zeros_like(flat)
    for e, (token, slot) in enumerate(members):
        out[token] += inner[e] @ w["ffn_down_exps.weight"][e].T * share[token, slot, None]
    if "ffn_up_shexp.weight" in w:
        out += (yield from _shared_expert(x, w, ctx)).reshape(flat.shape)
    return out.reshape(x.shape)


def _route(flat: Array, w: Weights, graph: Graph) -> tuple[NDArray[np.intp], Array]:
    """The experts of every token and their shares, both (n_tokens, n_expert_used)."""
    probabilities = ops.softmax(flat @ w["ffn_gate_inp.weight"].T)
    chosen = np.argsort(-probabilities, axis=-1, kind="stable")[:, : graph.n_expert_used]
    share = np.take_along_axis(probabilities, chosen, -1)
    if graph.row.renormalise_experts:
        share = share / share.sum(-1, keepdims=True)
    return chosen, share


def _shared_expert(x: Array, w: Weights, ctx: Context) -> Layer:
    out = yield from _feed_forward(x, None, w, ctx, "_shexp")
    if "ffn_gate_inp_shexp.weight" in w:
        door = x @ w["ffn_gate_inp_shexp.weight"].reshape(-1, 1)
        out = out * ops.sigmoid(door)
    return out


def _activate(x: Array, graph: Graph) -> Array:
    return ops.silu(x) if graph.row.activation == "silu" else ops.gelu(x)


def _linear(x: Array, w: Mapping[str, Array], name: str) -> Array:
    out: Array = x @ w[f"{name}.weight"].T
    if f"{name}.bias" in w:
        out += w[f"{name}.bias"]
    return out


def _norm(x: Array, w: Mapping[str, Array], name: str, graph: Graph) -> Array:
    gain: Any = w.get(f"{name}.weight", x.dtype.type(1))
    if graph.row.norm == "rms":
        return ops.rms_norm(x, gain, graph.eps)
    return ops.layer_norm(x, gain, w.get(f"{name}.bias"), graph.eps)


def _step(matrices: tuple[str, ...], x: Array, stream: Array | None = None) -> Step:
    flat = None if stream is None else stream.reshape(-1, stream.shape[-1])
    return Step(matrices, (x.reshape(-1, x.shape[-1]),), flat)
