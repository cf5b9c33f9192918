"""The feed-forward network, dense or a mixture of experts."""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tqgguf.kernels.arrays import moved, namespace, to_numpy
from tqgguf.network import ops
from tqgguf.network.graph import Routing
from tqgguf.network.layer import (
    Layer,
    LayerContext,
    Projection,
    Weights,
    halves,
    linear,
    product,
    projection,
    rows,
)
from tqgguf.network.ops import Array

_SMALLEST_SUM = 2.0**-14  # of the shares that are made to sum to one, as in llama.cpp


def feed_forward(
    x: Array, stream: Array | None, w: Weights, ctx: LayerContext, suffix: str = ""
) -> Layer:
    """One network for every token. x: (n_seq, n_tokens, n_embd)."""
    up, gate, down = f"ffn_up{suffix}", f"ffn_gate{suffix}", f"ffn_down{suffix}"
    gated = f"{gate}.weight" in w
    yield projection((gate, up) if gated else (up,), x)
    inner, gates = linear(x, w, up), linear(x, w, gate) if gated else None
    if ctx.graph.row.joined_ffn and not gated:
        gates, inner = halves(inner)
    inner = _activated(inner, gates, ctx)
    return (yield from product(inner, w, down, stream))


def experts(x: Array, stream: Array | None, w: Weights, ctx: LayerContext) -> Layer:
    """Every token through its best experts, and through one that all share if there is one."""
    flat = rows(x)
    yield projection(("ffn_gate_inp",), x)
    logits = linear(flat, w, "ffn_gate_inp")
    chosen, share = routed(logits, w.get("exp_probs_b.bias"), ctx.graph.routing)
    seats = Seats.of(chosen, logits.shape[-1])
    inner = yield from _inner(tuple(seats.inputs(flat)), w, ctx)
    yield Projection(("ffn_down_exps",), inner)
    down = w["ffn_down_exps.weight"]
    out: Array = seats.total(
        [_expert(a, down, w, "ffn_down_exps", e) for e, a in enumerate(inner)], share
    )
    out = namespace(x).reshape(out, x.shape)
    if "ffn_up_shexp.weight" in w:
        out = out + (yield from _shared_expert(x, None if stream is None else stream + out, w, ctx))
    return out


@dataclass(frozen=True)
class Seats:
    """Who sits where: tokens that chose each expert, and a token's places among all of these.

    tokens: one array of indices for every expert. places, slots: (n_tokens, n_used), a token's
    experts in ascending order: where its row is when those of all experts lie one after the other,
    and which of its choices that expert was.
    """

    tokens: tuple[NDArray[np.intp], ...]
    places: NDArray[np.intp]
    slots: NDArray[np.intp]

    @staticmethod
    def of(chosen: NDArray[np.intp], n_expert: int) -> "Seats":
        """Seat the tokens by what they chose, (n_tokens, n_used)."""
        slots = np.argsort(chosen, axis=-1, kind="stable")
        in_order = np.take_along_axis(chosen, slots, -1).reshape(-1)
        by_expert = np.argsort(in_order, kind="stable")
        places = np.empty_like(by_expert)
        places[by_expert] = np.arange(len(by_expert))
        edges = np.searchsorted(in_order[by_expert], np.arange(1, n_expert))
        tokens = np.split(by_expert // chosen.shape[1], edges)
        return Seats(tuple(tokens), places.reshape(chosen.shape), slots)

    def inputs(self, x: Array) -> Iterator[Array]:
        """The rows of x, (n_tokens, n), that each expert is given."""
        for tokens in self.tokens:
            yield namespace(x).take(x, moved(tokens, x), axis=0)

    def total(self, outputs: Sequence[Array], share: Array) -> Array:
        """A token's experts' outputs, each times its share, (n_tokens, n_used), summed up."""
        xp = namespace(share)
        lying = xp.concat(list(outputs), axis=0)
        share = xp.take_along_axis(share, moved(self.slots, share), axis=-1)
        out: Array = xp.zeros(
            (share.shape[0], lying.shape[1]), dtype=lying.dtype, device=lying.device
        )
        for i in range(share.shape[1]):
            out += xp.take(lying, moved(self.places[:, i], share), axis=0) * share[:, i, None]
        return out


def routed(logits: Array, bias: Array | None, routing: Routing) -> tuple[NDArray[np.intp], Array]:
    """The experts of every token and their shares, both (n_tokens, n_used).

    logits: (n_tokens, n_expert). bias: (n_expert,), what is added only to choose. The choice is a
    NumPy array: whoever sends tokens to experts has to know how many.
    """
    xp, scores = namespace(logits), _GATES[routing.gating](logits)
    ranked = _in_best_groups(to_numpy(scores if bias is None else scores + bias), routing)
    chosen = np.argsort(-ranked, axis=-1, kind="stable")[:, : routing.n_used]
    share = xp.take_along_axis(scores, moved(chosen, scores), axis=-1)
    if routing.gating == "softmax of chosen":
        share = ops.softmax(share)
    if routing.renormalised:
        total = xp.sum(share, axis=-1, keepdims=True)
        share = share / xp.maximum(total, xp.full_like(total, _SMALLEST_SUM))
    return chosen, share * routing.scale


_GATES: dict[str, Callable[[Array], Array]] = {
    "softmax": ops.softmax,
    "sigmoid": ops.sigmoid,
    "softmax of chosen": lambda logits: logits,
}


def _in_best_groups(scores: Array, routing: Routing) -> Array:
    """The scores, -inf outside the groups whose two best experts sum up to most."""
    if routing.n_groups == 1:
        return scores
    groups = scores.reshape(len(scores), routing.n_groups, -1)
    sums = np.sort(groups, axis=-1)[..., -2:].sum(-1)
    order = np.argsort(-sums, axis=-1, kind="stable")[:, routing.n_groups_used :]
    masked = groups.copy()
    np.put_along_axis(masked, order[..., None], -np.inf, axis=1)
    return masked.reshape(scores.shape)


def _inner(
    inputs: tuple[Array, ...], w: Weights, ctx: LayerContext
) -> Generator[Projection, Array | None, tuple[Array, ...]]:
    """What every expert's last matrix is given."""
    if "ffn_gate_up_exps.weight" in w:
        yield Projection(("ffn_gate_up_exps",), inputs)
        both = w["ffn_gate_up_exps.weight"]
        pairs = [halves(_expert(x, both, w, "ffn_gate_up_exps", e)) for e, x in enumerate(inputs)]
        return tuple(_activated(up, gate, ctx) for gate, up in pairs)
    yield Projection(("ffn_gate_exps", "ffn_up_exps"), inputs)
    gate, up = w["ffn_gate_exps.weight"], w["ffn_up_exps.weight"]
    return tuple(
        _activated(
            _expert(x, up, w, "ffn_up_exps", e), _expert(x, gate, w, "ffn_gate_exps", e), ctx
        )
        for e, x in enumerate(inputs)
    )


def _expert(x: Array, stacked: Array, w: Weights, name: str, e: int) -> Array:
    """Expert e's linear map, with its bias. x: (n_tokens, n_in), stacked: (n_expert, ...)."""
    out: Array = x @ stacked[e, ...].T
    if f"{name}.bias" in w:
        out += w[f"{name}.bias"][e, ...]
    return out


def _shared_expert(x: Array, stream: Array | None, w: Weights, ctx: LayerContext) -> Layer:
    """The expert of all tokens, whose output a sigmoid may weigh."""
    door = "ffn_gate_inp_shexp"
    if f"{door}.weight" not in w:
        return (yield from feed_forward(x, stream, w, ctx, "_shexp"))
    out = yield from feed_forward(x, None, w, ctx, "_shexp")
    yield projection((door,), x)
    return out * ops.sigmoid(x @ namespace(x).reshape(w[f"{door}.weight"], (-1, 1)))


def _activated(up: Array, gate: Array | None, ctx: LayerContext) -> Array:
    """The activation of the gate times what is gated, or of what comes alone."""
    kind = ctx.graph.row.activation
    if kind == "clamped silu" and gate is not None:
        return ops.clamped_silu(gate, up)
    alone = up if gate is None else gate
    if kind == "xielu":
        out = ops.xielu(alone, *ctx.graph.xielu_of(ctx.index))
    else:
        out = _ACTIVATIONS[kind](alone)
    if gate is not None:
        out *= up
    return out


_ACTIVATIONS = {"silu": ops.silu, "gelu": ops.gelu, "squared relu": ops.squared_relu}
