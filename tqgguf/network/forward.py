"""A reference forward pass, one layer's weights in memory at a time.

A layer is a generator: before each group of matrices is used it yields their common input, and it
reads the weights only after it was resumed. Whoever drives it may therefore measure the input,
replace the matrices by quantized ones, and let the layer go on with those: calibration needs
nothing else.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tqgguf.errors import UnsupportedModelError
from tqgguf.kernels.arrays import like, namespace
from tqgguf.kernels.dtypes import F32
from tqgguf.models.model import Model, Tensor
from tqgguf.models.roles import layer_prefix
from tqgguf.network import ops
from tqgguf.network.attention import attention, latent_attention
from tqgguf.network.delta_net import delta_net
from tqgguf.network.feed_forward import experts, feed_forward
from tqgguf.network.graph import Graph, read_graph, require_known
from tqgguf.network.layer import Layer as Layer
from tqgguf.network.layer import LayerContext, norm
from tqgguf.network.layer import Projection as Projection
from tqgguf.network.layer import Weights as Weights
from tqgguf.network.ops import Array
from tqgguf.network.rotary import Angles, angles, read_scaling, temperatures

Tokens = NDArray[np.int32]
Put = Callable[[NDArray[Any]], Any]
_ALIKE, _FEW = 2**-6, 3  # every weight, and how many tokens, where shapes alone matter
_NEAR = 32  # rows of the token table: a call costs as much as some of them
SubLayer = Callable[[Array, Array | None, Weights, LayerContext], Layer]


@dataclass(frozen=True)
class Context:
    """What all layers share: the graph and the rotary angles for the positions in use.

    plain holds the angles of layers without a window, windowed those of layers with one; scale and
    temperatures see LayerContext.
    """

    graph: Graph
    plain: Angles | None
    windowed: Angles | None
    scale: float
    temperatures: Array | None

    def of_layer(self, index: int) -> LayerContext:
        """What layer `index` needs to know."""
        window = self.graph.window(index)
        turns = self.windowed if window else self.plain
        turns = turns if self.graph.is_rotary(index) else None
        return LayerContext(self.graph, index, window, turns, self.scale, self.temperatures)


def context(model: Model, n_tokens: int, dtype: DTypeLike = np.float32) -> Context:
    """The shared part of a pass over sequences of n_tokens.

    Raises:
        UnsupportedModelError: see read_graph; or for a kind of rotary scaling, or for a tensor,
            that the pass does not know.
    """
    graph = read_graph(model)
    require_known(model, graph)
    try:
        return _context(model, graph, n_tokens, dtype)
    except (ArithmeticError, TypeError, ValueError) as error:
        raise UnsupportedModelError(
            f"{model.path.name}: its rotary embedding makes no sense ({error})"
        ) from error


def _context(model: Model, graph: Graph, n_tokens: int, dtype: DTypeLike) -> Context:
    plain = angles(model, graph, n_tokens, dtype=dtype)
    windowed = plain
    if graph.window_size:
        windowed = angles(model, graph, n_tokens, windowed=True, dtype=dtype)
    warmer = temperatures(model, graph, n_tokens)
    return Context(
        graph,
        plain,
        windowed,
        graph.attention_scale * read_scaling(model, graph).score_factor,
        None if warmer is None else warmer.astype(dtype)[:, None, None],
    )


def require_sound(model: Model) -> None:
    """Make sure that the header and the tensors' shapes are those of one network.

    Tokens go through weights that are all the same number, which takes no memory, and once through
    layers that are alike. So what fails in a pass after that is no fault of the file.

    Raises:
        UnsupportedModelError: see context; or a tensor is missing, or shapes contradict each other.
    """
    ctx, tokens = context(model, _FEW), np.zeros((1, _FEW), np.int32)
    tensors = {n: t.derived(partial(_alike, t.n_in)) for n, t in model.tensors.items()}
    same = replace(model, tensors=tensors)
    x = np.ones((*tokens.shape, ctx.graph.n_embd), np.float32)
    with np.errstate(all="ignore"):
        with _fitting(model, "token_embd", ctx.graph):
            _require_shape(x, embed(same, tokens))
        for index in _kinds(model, ctx.graph):
            with _fitting(model, f"blk.{index}", ctx.graph):
                weights = layer_weights(same, index)
                _require_shape(x, drain(layer(x, weights, ctx, index)))
        with _fitting(model, "output", ctx.graph):
            products(same, final_norm(same, x), 0, 1)


def _alike(n_in: int, start: int, stop: int) -> F32:
    return np.broadcast_to(np.float32(_ALIKE), (stop - start, n_in))


def _kinds(model: Model, graph: Graph) -> Iterator[int]:
    """The first of all layers whose tensors have the same names and shapes."""
    shapes: dict[str, set[tuple[str, tuple[int, ...]]]] = defaultdict(set)
    for name, tensor in model.tensors.items():
        prefix = layer_prefix(name)
        shapes[prefix].add((name.removeprefix(prefix), tensor.shape))
    seen = set[frozenset[tuple[str, tuple[int, ...]]]]()
    for index in range(graph.n_layer):
        kind = frozenset(shapes.get(f"blk.{index}.", ()))
        if kind not in seen:
            yield index
        seen.add(kind)


@contextmanager
def _fitting(model: Model, part: str, graph: Graph) -> Iterator[None]:
    """What fails inside is the file's fault: one line, and UnsupportedModelError."""
    try:
        yield
    except (ArithmeticError, LookupError, MemoryError, TypeError, ValueError) as error:
        raise UnsupportedModelError(
            f"{model.path.name}: {part}: its tensors do not fit the graph of {graph.architecture} "
            f"({type(error).__name__}: {error})"
        ) from error


def _require_shape(expected: Array, found: Array) -> None:
    if found.shape != expected.shape:
        raise ValueError(f"a stream of {found.shape}, expected {expected.shape}")


def logits(
    model: Model, tokens: Tokens, *, dtype: DTypeLike = np.float32, put: Put = np.asarray
) -> Array:
    """Logits of every position. tokens: (n_seq, n_tokens) int -> (n_seq, n_tokens, n_vocab).

    put: makes of NumPy's arrays those that the pass computes with.

    Raises:
        UnsupportedModelError: see require_sound.
    """
    return head(model, hidden_states(model, tokens, dtype=dtype, put=put))


def hidden_states(
    model: Model, tokens: Tokens, *, dtype: DTypeLike = np.float32, put: Put = np.asarray
) -> Array:
    """The normed states that the head reads. tokens: (n_seq, n_tokens) -> (..., n_embd)."""
    require_sound(model)
    ctx = context(model, tokens.shape[1], dtype)
    x = put(embed(model, tokens, dtype=dtype))
    for index, weights in enumerate(layers(model, ctx.graph, dtype=dtype, put=put)):
        x = drain(layer(x, weights, ctx, index))
    return final_norm(model, x)


def embed(model: Model, tokens: Tokens, *, dtype: DTypeLike = np.float32) -> Array:
    """Look the tokens up. tokens: (n_seq, n_tokens) int -> (n_seq, n_tokens, n_embd).

    Raises UnsupportedModelError where there are positions for fewer tokens.
    """
    graph = read_graph(model)
    unique, inverse = np.unique(tokens, return_inverse=True)
    rows = _looked_up(model.tensors["token_embd.weight"], unique)
    x: Array = rows.astype(dtype, copy=False)[inverse.reshape(tokens.shape)]
    if graph.embedding_scale != 1:
        x = x * x.dtype.type(graph.embedding_scale)
    if "position_embd.weight" in model.tensors:
        x = x + _positions(model, tokens.shape[1]).astype(dtype)
    return _outer_norm(model, x, "token_embd_norm")


def _looked_up(table: Tensor, ids: Tokens) -> F32:
    """These rows of a table, those of a neighbourhood read at once. ids: (n,), sorted."""
    near = np.split(ids, np.flatnonzero(np.diff(ids // _NEAR)) + 1)
    return np.concatenate([table.rows(int(i[0]), int(i[-1]) + 1)[i - i[0]] for i in near])


def _positions(model: Model, n_tokens: int) -> F32:
    table = model.tensors["position_embd.weight"]
    if table.n_rows < n_tokens:
        raise UnsupportedModelError(
            f"{model.path.name}: position_embd.weight has {table.n_rows} rows, but the header "
            f"allows {n_tokens} tokens"
        )
    return table.rows(0, n_tokens)


def layers(
    model: Model, graph: Graph, *, dtype: DTypeLike = np.float32, put: Put = np.asarray
) -> Iterator[dict[str, Array]]:
    """The weights of one layer after the other, those of the next being read meanwhile."""
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(layer_weights, model, 0, dtype=dtype)
        for index in range(graph.n_layer):
            weights = coming.result()
            if index + 1 < graph.n_layer:
                coming = reader.submit(layer_weights, model, index + 1, dtype=dtype)
            yield {name: put(x) for name, x in weights.items()}


def layer_weights(model: Model, index: int, *, dtype: DTypeLike = np.float32) -> dict[str, Array]:
    """All tensors of layer `index`, by their name without "blk.N."."""
    prefix = f"blk.{index}."
    return {
        name.removeprefix(prefix): tensor.read().astype(dtype, copy=False)
        for name, tensor in model.tensors.items()
        if name.startswith(prefix)
    }


def final_norm(model: Model, x: Array) -> Array:
    """The norm before the head. x: (..., n_embd) -> (..., n_embd)."""
    return _outer_norm(model, x, "output_norm", always=read_graph(model).row.gainless)


def _outer_norm(model: Model, x: Array, name: str, *, always: bool = False) -> Array:
    """A norm outside the layers, where it is one of the model's tensors or stands always."""
    names = (f"{name}.weight", f"{name}.bias")
    weights = {n: like(model.tensors[n].read(), x) for n in names if n in model.tensors}
    return norm(x, weights, name, read_graph(model)) if always or weights else x


def head_name(model: Model) -> str:
    """The tensor that serves as head: `output.weight`, or the embedding of a tied model."""
    return "output.weight" if "output.weight" in model.tensors else "token_embd.weight"


def head(model: Model, normed: Array, *, chunk: int = 16384) -> Array:
    """Logits from normed states, the head read `chunk` rows at a time.

    normed: (..., n_embd) -> (..., n_vocab).
    """
    n_vocab = model.tensors[head_name(model)].n_rows
    parts = [scores(model, normed, at, at + chunk) for at in range(0, n_vocab, chunk)]
    out: Array = namespace(normed).concat(parts, axis=-1)
    return out


def scores(model: Model, normed: Array, start: int, stop: int) -> Array:
    """Logits of these rows of the head from normed states: (..., n_embd) -> (..., n)."""
    out, graph = products(model, normed, start, stop), read_graph(model)
    if graph.logit_scale != 1:
        out *= graph.logit_scale
    return ops.capped(out, graph.logit_cap)


def products(model: Model, normed: Array, start: int, stop: int) -> Array:
    """Normed states times these rows of the head, with their bias: (..., n_embd) -> (..., n)."""
    tensor = model.tensors[head_name(model)]
    stop = min(stop, tensor.n_rows)
    out: Array = normed @ like(tensor.rows(start, stop), normed).T
    if "output.bias" in model.tensors:
        bias = model.tensors["output.bias"].read().reshape(-1)
        out += like(bias[start:stop], normed)
    return out


def drain(generator: Layer) -> Array:
    """Run a layer to its end, whatever it yields, and return its output."""
    while True:
        try:
            next(generator)
        except StopIteration as end:
            out: Array = end.value
            return out


def layer(x: Array, w: Weights, ctx: Context, index: int) -> Layer:
    """Layer number `index`. x: (n_seq, n_tokens, n_embd); see the module for what it yields."""
    here = ctx.of_layer(index)
    graph, row = here.graph, here.graph.row
    normed = _normed(x, w, "attn_norm", graph)
    heads = _normed(x, w, "attn_norm_2", graph) if "attn_norm_2.weight" in w else normed
    after = _AFTER_ATTENTION if row.ffn_norm != _AFTER_ATTENTION else ""
    between = x + (yield from _added(_mixer(w), heads, x, w, after, here))
    inner = _normed(x if graph.parallel else between, w, row.ffn_norm, graph)
    if row.parallel == "without ffn norm" and f"{row.ffn_norm}.weight" not in w:
        inner = normed
    mixture = experts if "ffn_gate_inp.weight" in w else feed_forward
    return between + (yield from _added(mixture, inner, between, w, "post_ffw_norm", here))


_AFTER_ATTENTION = "post_attention_norm"  # in some graphs the norm before the FFN has this name


def _mixer(w: Weights) -> SubLayer:
    """The kind of attention whose tensors a layer has."""
    if "ssm_conv1d.weight" in w:
        return delta_net
    return latent_attention if "attn_kv_a_mqa.weight" in w else attention


def _added(
    sub_layer: SubLayer, x: Array, stream: Array, w: Weights, norm_after: str, here: LayerContext
) -> Layer:
    """What a sub-layer that reads x adds to the stream, after a norm of its own if it has one."""
    scale = here.graph.residual_scale
    has_norm = f"{norm_after}.weight" in w
    if has_norm:
        out = yield from sub_layer(x, None, w, here)
        out = norm(out, w, norm_after, here.graph)
    else:
        out = yield from sub_layer(x, stream if scale == 1 else stream / scale, w, here)
    return out if scale == 1 else out * scale


def _normed(x: Array, w: Weights, name: str, graph: Graph) -> Array:
    """The norm before a sub-layer; without a gain it is left out, or stands all the same."""
    is_there = f"{name}.weight" in w or graph.row.gainless
    return norm(x, w, name, graph) if is_there else x
