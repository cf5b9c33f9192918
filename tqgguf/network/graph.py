"""What a forward pass needs to know about a model: its architecture's row and a few numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tqgguf.errors import UnsupportedModelError
from tqgguf.models.model import Model
from tqgguf.models.roles import layer_index, role
from tqgguf.network.rows import ARCHITECTURES, Row
from tqgguf.rotation.architectures import STREAMS

_GATING: dict[int, Literal["softmax", "sigmoid", "softmax of chosen"]] = {
    1: "softmax",
    2: "sigmoid",
    3: "softmax of chosen",
}
_MOST = 1 << 24  # of layers, heads or columns
_XIELU = ("alpha_n", "alpha_p", "beta", "eps")


@dataclass(frozen=True)
class Routing:
    """How a token's experts are chosen.

    Of n_groups groups of experts (1: all experts are one) the n_groups_used best ones take part;
    then the n_used best experts. renormalised: their shares sum to one. scale: of the shares.
    """

    n_used: int
    gating: Literal["softmax", "sigmoid", "softmax of chosen"]
    renormalised: bool
    scale: float
    n_groups: int
    n_groups_used: int


@dataclass(frozen=True)
class Graph:
    """One model's graph: its architecture's row and its own numbers.

    window_size: how many tokens a token of a windowed layer sees, itself included (0: there are no
    such layers). window_pattern: every so-many-th layer has no window, or whether each has one.
    score_cap, logit_cap, projection_clamp, max_alibi_bias: 0 where there is none. xielu: alpha_n,
    alpha_p, beta and eps, each one number or one for every layer.
    """

    architecture: str
    row: Row
    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_ctx: int
    eps: float
    routing: Routing
    embedding_scale: float
    residual_scale: float
    attention_scale: float
    logit_scale: float
    score_cap: float
    logit_cap: float
    projection_clamp: float
    max_alibi_bias: float
    parallel: bool
    rotary: bool
    window_size: int
    window_pattern: int | Sequence[bool]
    xielu: tuple[float | Sequence[float], ...]

    def window(self, index: int) -> int:
        """How many tokens a token of layer `index` sees, itself included; 0: all before it."""
        if isinstance(self.window_pattern, int):
            period = self.window_pattern
            windowed = period == 0 or index % period < period - 1
        else:
            windowed = index < len(self.window_pattern) and bool(self.window_pattern[index])
        return self.window_size if windowed else 0

    def is_rotary(self, index: int) -> bool:
        """Whether layer `index` turns its queries and keys by their positions."""
        step, windows = self.row.no_rope_step, self.row.windows
        if step and (index + 1) % step == 0:
            return False
        if self.window_size and windows and not windows.rotary_elsewhere:
            return self.rotary and self.window(index) > 0
        return self.rotary

    def xielu_of(self, index: int) -> tuple[float, ...]:
        """alpha_n, alpha_p, beta and eps of layer `index`."""
        return tuple(a[index] if isinstance(a, Sequence) else a for a in self.xielu)


def read_graph(model: Model) -> Graph:
    """Read a model's graph from its metadata.

    Raises:
        UnsupportedModelError: no forward pass for this architecture, or for one of the tensors; a
            needed key is absent, or numbers that no model could have.
    """
    row = ARCHITECTURES.get(model.architecture)
    if row is None:
        raise UnsupportedModelError(
            f"{model.path.name}: no forward pass for architecture {model.architecture!r}"
        )
    try:
        graph = _read(model, row)
    except (ArithmeticError, TypeError, ValueError) as error:
        raise UnsupportedModelError(
            f"{model.path.name}: its graph makes no sense ({error})"
        ) from error
    sizes = (graph.n_layer, graph.n_embd, graph.n_head, graph.n_head_kv, graph.head_dim)
    if not all(0 < n < _MOST for n in sizes) or graph.n_ctx < 1 or graph.n_head % graph.n_head_kv:
        raise UnsupportedModelError(
            f"{model.path.name}: {graph.n_layer} layers of {graph.n_head} heads of "
            f"{graph.head_dim}, {graph.n_head_kv} of them with keys, make no sense"
        )
    return graph


def require_known(model: Model, graph: Graph) -> None:
    """Raise UnsupportedModelError if a tensor stands in the graph that the pass knows nothing of.

    Layers that only predict further tokens are not part of it.
    """
    stream = STREAMS[graph.architecture]
    known = {*stream.norms, *stream.readers, *stream.writers, *stream.embeddings, "output"}
    known |= {stream.head_norm, stream.embedding_norm, *stream.untouched}
    for name in model.tensors:
        layer = layer_index(name)
        if role(name)[0] not in known and (layer is None or layer < graph.n_layer):
            raise UnsupportedModelError(
                f"{model.path.name}: no forward pass with {name}, which is not known to be part of "
                f"{graph.architecture}"
            )


def _read(model: Model, row: Row) -> Graph:
    n_head = _count(model, "attention.head_count")
    n_embd = _count(model, "embedding_length")
    head_dim = _count(model, "attention.key_length", 0) or n_embd // n_head
    n_layer = _count(model, "block_count") - _count(model, "nextn_predict_layers", 0)
    window_size, window_pattern = _windows(model, row, n_layer)
    return Graph(
        architecture=model.architecture,
        row=row,
        n_layer=n_layer,
        n_embd=n_embd,
        n_head=n_head,
        n_head_kv=_count(model, "attention.head_count_kv", 0) or n_head,
        head_dim=head_dim,
        n_ctx=_count(model, "context_length", 2048),
        eps=read_number(model, f"attention.layer_norm{'_rms' * (row.norm == 'rms')}_epsilon", 1e-5),
        routing=_routing(model, row),
        embedding_scale=_embedding_scale(model, row, n_embd),
        residual_scale=read_optional(model, "residual_scale") or 1.0,
        attention_scale=_attention_scale(model, row, n_layer, head_dim),
        logit_scale=_logit_scale(model, row),
        score_cap=read_optional(model, "attn_logit_softcapping"),
        logit_cap=read_optional(model, "final_logit_softcapping"),
        projection_clamp=read_optional(model, "attention.clamp_kqv"),
        max_alibi_bias=read_optional(model, "attention.max_alibi_bias"),
        parallel=row.parallel == "as told" and bool(model.get("{arch}.use_parallel_residual")),
        rotary=_is_rotary(model, row),
        window_size=window_size,
        window_pattern=window_pattern,
        xielu=tuple(model.get(f"xielu.{key}", 0.0) for key in _XIELU),
    )


def read_number(model: Model, key: str, default: float = 0.0) -> float:
    """A number from the metadata, from what llama.cpp takes without it, or else the default."""
    row = ARCHITECTURES[model.architecture]
    value = model.get(f"{{arch}}.{key}", row.defaults.get(key, default))
    if not isinstance(value, int | float):
        raise UnsupportedModelError(
            f"{model.path.name}: {model.architecture}.{key} is {value!r}, expected a number"
        )
    return float(value)


def read_optional(model: Model, key: str, default: float = 0.0) -> float:
    """The same of a key that only some graphs read; the default where this one does not."""
    row = ARCHITECTURES[model.architecture]
    return read_number(model, key, default) if key in (*row.reads, *row.defaults) else default


def _count(model: Model, key: str, default: int | None = None) -> int:
    value = model.get(f"{{arch}}.{key}", default)
    if not isinstance(value, int):
        fact = "has no number" if value is None else "has more than one number as"
        raise UnsupportedModelError(
            f"{model.path.name}: metadata {fact} {model.architecture}.{key}, "
            "which a forward pass needs"
        )
    return value


def _windows(model: Model, row: Row, n_layer: int) -> tuple[int, int | Sequence[bool]]:
    windows = row.windows
    if windows is None or windows.n_layer not in (0, n_layer):
        return 0, 1
    pattern = model.get("{arch}.attention.sliding_window_pattern", windows.period)
    return int(read_number(model, "attention.sliding_window")), pattern


def _routing(model: Model, row: Row) -> Routing:
    told = bool(model.get("{arch}.expert_weights_norm", False))
    renormalised = told if row.renormalised is None else row.renormalised
    gating = row.gating
    if row.renormalised is None:  # the graphs that read one key read the other as well
        gating = _GATING.get(_count(model, "expert_gating_func", 0), gating)
    return Routing(
        n_used=_count(model, "expert_used_count", 0),
        gating=gating,
        renormalised=renormalised,
        scale=read_optional(model, "expert_weights_scale") or 1.0,
        n_groups=max(1, _count(model, "expert_group_count", 0)),
        n_groups_used=_count(model, "expert_group_used_count", 0),
    )


def _embedding_scale(model: Model, row: Row, n_embd: int) -> float:
    return (
        math.sqrt(n_embd)
        if row.embedding_by_width
        else read_optional(model, "embedding_scale") or 1.0
    )


def _logit_scale(model: Model, row: Row) -> float:
    """What logits are multiplied by."""
    told = read_optional(model, "logit_scale") or 1.0
    return told if row.multiplied_logits else 1 / told


def _attention_scale(model: Model, row: Row, n_layer: int, head_dim: int) -> float:
    told = read_optional(model, "attention.scale")
    if told:
        return told
    n_embd, n_head = (_count(model, key) for key in ("embedding_length", "attention.head_count"))
    size = _count(model, "attention.key_length_mla", 0) or head_dim
    return 1 / math.sqrt(n_embd // n_head if n_layer == row.wide_layers else size)


def _is_rotary(model: Model, row: Row) -> bool:
    switched_off = row.rope_if_finetuned and not model.get("{arch}.rope.scaling.finetuned", True)
    return row.rope != "none" and not switched_off
