"""What the parts of a layer share: the projections they yield, weights, linear maps, norms."""

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from tqgguf.kernels.arrays import namespace
from tqgguf.network import ops
from tqgguf.network.graph import Graph
from tqgguf.network.lazy import LazyWeights
from tqgguf.network.ops import Array
from tqgguf.network.rotary import Angles

Weights = Mapping[str, Array]  # a layer's tensors by their name without "blk.N."


@dataclass(frozen=True)
class Projection:
    """Some matrices of a layer, and the input that they are about to be multiplied with.

    inputs has one (n_tokens, n_in) array, or one for every matrix of stacked ones. stream is what
    the product will be added to, (n_tokens, n_embd), where it is added directly.
    """

    matrices: tuple[str, ...]
    inputs: tuple[Array, ...]
    stream: Array | None = None


Layer = Generator[Projection, Array | None, Array]  # what may be sent: see `product`


@dataclass(frozen=True)
class LayerContext:
    """What one layer needs to know: angles is None where its queries and keys do not turn.

    window: how many tokens a token sees, itself included (0: all before it). scale: of scores.
    temperatures: what the queries of every position are multiplied by, (n_tokens, 1, 1) or None.
    """

    graph: Graph
    index: int
    window: int
    angles: Angles | None
    scale: float
    temperatures: Array | None


def projection(matrices: tuple[str, ...], x: Array, stream: Array | None = None) -> Projection:
    """Matrices that are multiplied with x: (..., n_in), stream: (..., n_embd)."""
    return Projection(matrices, (rows(x),), None if stream is None else rows(stream))


def rows(x: Array) -> Array:
    """All axes but the last as one: (..., n) -> (n_rows, n)."""
    flat: Array = namespace(x).reshape(x, (-1, x.shape[-1]))
    return flat


def cut(x: Array, *edges: int) -> list[Array]:
    """The columns before the first edge, between the first and the second, and so on."""
    return [x[..., a:b] for a, b in pairwise((0, *edges, x.shape[-1]))]


def halves(x: Array) -> list[Array]:
    """The first and the second half of the columns."""
    return cut(x, x.shape[-1] // 2)


def linear(x: Array, w: Weights, name: str) -> Array:
    """Apply a matrix, and its bias where there is one. x: (..., n_in) -> (..., n_out)."""
    matrix = f"{name}.weight"
    out: Array = w.times(x, matrix) if isinstance(w, LazyWeights) else x @ w[matrix].T
    if f"{name}.bias" in w:
        out += w[f"{name}.bias"]
    return out


def product(x: Array, w: Weights, name: str, stream: Array | None) -> Layer:
    """The matrix at the end of a sub-layer, told of and applied to x: (..., n_in) -> (..., n_out).

    Who looks on may send the product, (n_tokens, n_out), if it has been computed already.
    """
    sent = yield projection((name,), x, stream)
    if sent is None:
        return linear(x, w, name)
    out: Array = namespace(x).reshape(sent, (*x.shape[:-1], -1))
    return out


def norm(x: Array, w: Weights, name: str, graph: Graph) -> Array:
    """The architecture's norm over the last axis, with the gain and bias that exist."""
    gain, bias = w.get(f"{name}.weight"), w.get(f"{name}.bias")
    kind = ops.rms_norm if graph.row.norm == "rms" else ops.layer_norm
    return kind(x, gain, bias, graph.eps)
