"""What a forward pass needs to know about a model: a few numbers from its metadata.

Architectures are rows of a table. A row names what differs between the graphs; everything optional
(biases, q/k norms, experts, scalar multipliers) is recognised by the tensors and keys that exist.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tqgguf.errors import UnsupportedModelError
from tqgguf.kernels.dtypes import F64
from tqgguf.models.model import Model


@dataclass(frozen=True)
class Row:
    """How one architecture's graph differs from the others."""

    rope: Literal["interleaved", "halves", "none"]  # how dimensions are paired
    norm: Literal["rms", "layer"] = "rms"
    activation: Literal["silu", "gelu"] = "silu"
    renormalise_experts: bool = True  # the chosen experts' weights sum to one


ARCHITECTURES: dict[str, Row] = {
    "llama": Row("interleaved"),
    "mistral3": Row("interleaved"),
    "granite": Row("interleaved"),
    "qwen2": Row("halves"),
    "qwen2moe": Row("halves", renormalise_experts=False),
    "qwen3": Row("halves"),
    "qwen3moe": Row("halves"),
    "gpt2": Row("none", norm="layer", activation="gelu"),
    "starcoder2": Row("halves", norm="layer", activation="gelu"),
}


@dataclass(frozen=True)
class Graph:
    """One model's graph: its architecture's row and its own numbers."""

    architecture: str
    row: Row
    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_ctx: int
    eps: float
    n_expert_used: int
    embedding_scale: float
    residual_scale: float
    attention_scale: float
    logit_scale: float


def read_graph(model: Model) -> Graph:
    """Read a model's graph from its metadata.

    Raises:
        UnsupportedModelError: no forward pass for this architecture, or a needed key is absent.
    """
    row = ARCHITECTURES.get(model.architecture)
    if row is None:
        raise UnsupportedModelError(
            f"{model.path.name}: no forward pass for architecture {model.architecture!r}; "
            f"there is one for {', '.join(sorted(ARCHITECTURES))}"
        )
    n_head = _number(model, "attention.head_count")
    n_embd = _number(model, "embedding_length")
    head_dim = int(model.get("{arch}.attention.key_length", 0)) or n_embd // n_head
    return Graph(
        architecture=model.architecture,
        row=row,
        n_layer=_number(model, "block_count"),
        n_embd=n_embd,
        n_head=n_head,
        n_head_kv=int(model.get("{arch}.attention.head_count_kv", 0)) or n_head,
        head_dim=head_dim,
        n_ctx=int(model.get("{arch}.context_length", 2048)),
        eps=_epsilon(model, row),
        n_expert_used=int(model.get("{arch}.expert_used_count", 0)),
        embedding_scale=float(model.get("{arch}.embedding_scale", 0)) or 1.0,
        residual_scale=float(model.get("{arch}.residual_scale", 0)) or 1.0,
        attention_scale=float(model.get("{arch}.attention.scale", 0)) or 1 / math.sqrt(head_dim),
        logit_scale=float(model.get("{arch}.logit_scale", 0)) or 1.0,
    )


def rotary(model: Model, graph: Graph, n_tokens: int) -> tuple[F64, F64]:
    """Cosines and sines of the rotary embedding, two (n_tokens, n_rot / 2) float64 arrays.

    Linear and YaRN scaling from the metadata and llama3 scaling from `rope_freqs.weight`, after
    ggml's rope_yarn; (n_tokens, 0) arrays where the graph has no rotary embedding.
    """
    if graph.row.rope == "none":
        return np.zeros((n_tokens, 0)), np.zeros((n_tokens, 0))
    n_rot = int(model.get("{arch}.rope.dimension_count", graph.head_dim))
    if not 0 < n_rot <= graph.head_dim:
        raise UnsupportedModelError(
            f"{model.path.name}: rope.dimension_count is {n_rot} of heads of {graph.head_dim}"
        )
    base = float(model.get("{arch}.rope.freq_base", 10000.0))
    frequencies: F64 = base ** (-np.arange(0, n_rot, 2) / n_rot)
    if "rope_freqs.weight" in model.tensors:
        frequencies = frequencies / model.tensors["rope_freqs.weight"].read().reshape(-1)
    frequencies, magnitude = _scale_frequencies(model, graph, frequencies, base)
    angles = np.outer(np.arange(n_tokens), frequencies)
    return np.cos(angles) * magnitude, np.sin(angles) * magnitude


def _scale_frequencies(
    model: Model, graph: Graph, frequencies: F64, base: float
) -> tuple[F64, float]:
    kind = model.get("{arch}.rope.scaling.type", "linear")
    factor = float(
        model.get("{arch}.rope.scaling.factor", 0) or model.get("{arch}.rope.scale_linear", 0) or 1
    )
    attention = float(model.get("{arch}.rope.scaling.attn_factor", 1.0))
    if kind == "yarn":
        context = int(model.get("{arch}.rope.scaling.original_context_length", graph.n_ctx))
        low, high = _yarn_corrections(model, 2 * len(frequencies), context, base)
        ramp = 1 - np.clip((np.arange(len(frequencies)) - low) / max(0.001, high - low), 0, 1)
        mixed = frequencies / factor * (1 - ramp) + frequencies * ramp
        return mixed, attention * (1 + 0.1 * math.log(max(factor, 1.0)))
    if kind not in ("linear", "none"):
        raise UnsupportedModelError(
            f"{model.path.name}: no forward pass for rope scaling {kind!r}; linear, llama3 and yarn"
        )
    return frequencies / (factor if kind == "linear" else 1.0), attention


def _yarn_corrections(model: Model, n_rot: int, context: int, base: float) -> tuple[float, float]:
    def dimension(rotations: float) -> float:
        return n_rot * math.log(context / (rotations * 2 * math.pi)) / (2 * math.log(base))

    fast = float(model.get("{arch}.rope.scaling.yarn_beta_fast", 32.0))
    slow = float(model.get("{arch}.rope.scaling.yarn_beta_slow", 1.0))
    return max(0, math.floor(dimension(fast))), min(n_rot - 1, math.ceil(dimension(slow)))


def _epsilon(model: Model, row: Row) -> float:
    key = "layer_norm_rms_epsilon" if row.norm == "rms" else "layer_norm_epsilon"
    return float(model.get(f"{{arch}}.attention.{key}", 1e-5))


def _number(model: Model, key: str) -> int:
    value = model.get(f"{{arch}}.{key}")
    if not isinstance(value, int):
        raise UnsupportedModelError(
            f"{model.path.name}: metadata has no number {model.architecture}.{key}, "
            "which a forward pass needs"
        )
    return value
