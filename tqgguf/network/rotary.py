"""Rotary position embeddings: the angles by which a layer's queries and keys turn."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike

from tqgguf.errors import UnsupportedModelError
from tqgguf.kernels.dtypes import F64
from tqgguf.models.model import Model
from tqgguf.network.graph import Graph, read_number, read_optional
from tqgguf.network.ops import Array

_KINDS = ("none", "linear", "longrope", "yarn")


@dataclass(frozen=True)
class Angles:
    """Cosines and sines of every position, both (n_tokens, n_rot / 2).

    interleaved: dimensions (0, 1), (2, 3), ... are pairs; otherwise i and i + n_rot / 2 are.
    """

    cos: Array
    sin: Array
    interleaved: bool


@dataclass(frozen=True)
class Scaling:
    """How frequencies are scaled: kind is one of _KINDS, magnitude that of the pairs.

    LongRoPE is linear scaling beside factors that are tensors (see _frequencies).

    score_factor: what the scores are multiplied by.
    """

    kind: str
    factor: float
    magnitude: float
    score_factor: float


def read_scaling(model: Model, graph: Graph) -> Scaling:
    """The metadata's scaling of frequencies, with YaRN's corrections after ggml's rope_yarn."""
    kind = str(model.get("{arch}.rope.scaling.type", "linear"))
    if kind not in _KINDS:
        raise UnsupportedModelError(
            f"{model.path.name}: no forward pass for rope scaling {kind!r}; there is one for "
            f"{', '.join(_KINDS)}"
        )
    told = (
        read_number(model, "rope.scaling.factor") or read_number(model, "rope.scale_linear") or 1.0
    )
    factor = 1.0 if kind == "none" else told
    row = graph.row
    multiplier = (
        read_number(model, "rope.scaling.yarn_log_multiplier") if row.yarn_multiplier else 0.0
    )
    every = multiplier / (row.yarn_multiplier or 1.0)
    magnitude = read_number(model, "rope.scaling.attn_factor", 1.0)
    magnitude *= _yarn_magnitude(factor, every, row.yarn_scores) if kind == "yarn" else 1.0
    score_factor = 1.0
    if row.yarn_scores:
        plain = magnitude * (1.0 if kind == "yarn" else 1 + 0.1 * math.log(factor))
        score_factor = (plain * (1 + 0.1 * every * math.log(factor))) ** 2
    return Scaling(kind, factor, magnitude, score_factor)


def _yarn_magnitude(factor: float, every: float, in_scores: bool) -> float:
    """How much longer YaRN makes queries and keys; every: the share that all dimensions have."""

    def longer(share: float) -> float:
        return 1 + 0.1 * share * math.log(factor) if factor > 1 else 1.0

    if not every:
        return longer(1.0)
    return longer(every if in_scores and every != 1 else 1.0) / longer(every)


def angles(
    model: Model,
    graph: Graph,
    n_tokens: int,
    *,
    windowed: bool = False,
    dtype: DTypeLike = np.float32,
) -> Angles | None:
    """The angles of the layers that have windows, or of the others; None where none turns.

    Raises UnsupportedModelError for a kind of scaling that is not known.
    """
    if not graph.rotary:
        return None
    windows = graph.row.windows if windowed else None
    base = read_number(model, "rope.freq_base", 10000.0)
    if windows:
        base = read_number(model, "rope.freq_base_swa", windows.base or base)
    frequencies = _frequencies(model, graph, n_tokens, base)
    magnitude = 1.0
    if windows is None or windows.scaled:
        frequencies, magnitude = _scaled(model, graph, frequencies, base)
    pairing = graph.row.rope
    if graph.row.sections != "no" and any(_sections(model)):
        frequencies, pairing = frequencies * _turned(model, graph, len(frequencies)), "halves"
    turns = np.outer(np.arange(n_tokens), frequencies)
    cos, sin = np.cos(turns) * magnitude, np.sin(turns) * magnitude
    return Angles(cos.astype(dtype), sin.astype(dtype), pairing == "interleaved")


def temperatures(model: Model, graph: Graph, n_tokens: int) -> F64 | None:
    """What the queries of every position are multiplied by, (n_tokens,); None where by nothing."""
    key = graph.row.temperature_length
    scale = read_number(model, "attention.temperature_scale") if key else 0.0
    if not scale:
        return None
    length = read_number(model, key, graph.n_ctx)
    return np.asarray(np.log(np.floor(np.arange(n_tokens) / length) + 1) * scale + 1)


def _frequencies(model: Model, graph: Graph, n_tokens: int, base: float) -> F64:
    """Radians per token, (n_rot / 2,), divided by the factors that a model may bring."""
    n_rot = int(read_number(model, "rope.dimension_count", graph.head_dim))
    if not 0 < n_rot <= graph.head_dim:
        raise UnsupportedModelError(
            f"{model.path.name}: rope.dimension_count is {n_rot} of heads of {graph.head_dim}"
        )
    if not base > 0:
        raise UnsupportedModelError(f"{model.path.name}: rope.freq_base is {base:g}")
    frequencies: F64 = base ** (-np.arange(0, n_rot, 2) / n_rot)
    length = "long" if n_tokens > _original_context(model, graph) else "short"
    for name in ("rope_freqs.weight", f"rope_factors_{length}.weight"):
        if name in model.tensors:
            return frequencies / model.tensors[name].read().reshape(-1)
    return frequencies


def _scaled(model: Model, graph: Graph, frequencies: F64, base: float) -> tuple[F64, float]:
    """The frequencies after the metadata's scaling, and the pairs' magnitude."""
    scaling = read_scaling(model, graph)
    if scaling.kind != "yarn":
        return frequencies / scaling.factor, scaling.magnitude
    low, high = _yarn_corrections(model, graph, 2 * len(frequencies), base)
    ramp = 1 - np.clip((np.arange(len(frequencies)) - low) / max(0.001, high - low), 0, 1)
    mixed = frequencies / scaling.factor * (1 - ramp) + frequencies * ramp
    return mixed, scaling.magnitude


def _yarn_corrections(model: Model, graph: Graph, n_rot: int, base: float) -> tuple[float, float]:
    context = _original_context(model, graph)

    def dimension(rotations: float) -> float:
        return n_rot * math.log(context / (rotations * 2 * math.pi)) / (2 * math.log(base))

    fast = read_optional(model, "rope.scaling.yarn_beta_fast", 32.0)
    slow = read_optional(model, "rope.scaling.yarn_beta_slow", 1.0)
    return max(0, math.floor(dimension(fast))), min(n_rot - 1, math.ceil(dimension(slow)))


def _original_context(model: Model, graph: Graph) -> float:
    return read_number(model, "rope.scaling.original_context_length", graph.n_ctx)


def _sections(model: Model) -> list[int]:
    found = model.get("{arch}.rope.dimension_sections", [])
    return list(found) if isinstance(found, list | tuple) else []


def _turned(model: Model, graph: Graph, n_pairs: int) -> F64:
    """1 for every pair that turns with a text's position, 0 for those of an image's alone."""
    time, height, width, *_ = [*_sections(model), 0, 0, 0]
    pair = np.arange(n_pairs) % max(1, sum(_sections(model)))
    if graph.row.sections == "blocks":
        return np.asarray(pair < time + height + width, np.float64)
    limits = np.array([time, height, width])
    return np.asarray(pair < 3 * limits[pair % 3], np.float64)
