"""From config.json to the GGUF keys of a graph, rotary scaling included."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from tqgguf.errors import FileFormatError, UnsupportedModelError
from tqgguf.kernels.dtypes import F32
from tqgguf.models.huggingface.architectures import Architecture, rope_width
from tqgguf.models.huggingface.folder import Config
from tqgguf.models.metadata import Value, encode
from tqgguf.models.model import Tensor

_SIMPLE = ("default", "linear", "yarn")  # rope types that need no tensor of factors
_YARN_DEFAULTS = {"beta_fast": 32.0, "beta_slow": 1.0}  # what llama.cpp computes with


def convert_hyperparameters(config: Config, architecture: Architecture) -> dict[str, Value]:
    """The keys `{arch}.*` of a model; FileFormatError for what config.json lacks."""
    values = {key.name: key.value(config) for key in architecture.keys}
    if architecture.rope:
        values |= dict(_rope_keys(config, architecture))
    return {
        f"{architecture.name}.{name}": encode(value)
        for name, value in values.items()
        if value is not None
    }


def rope_tensors(config: Config, architecture: Architecture) -> dict[str, Tensor]:
    """Factors of the rotary frequencies that are tensors in GGUF: rope_type llama3 and longrope."""
    if not architecture.rope:
        return {}
    scaling = _scaling(config)
    factors: Mapping[str, F32] = {}
    if _rope_type(scaling) == "llama3":
        factors = {"rope_freqs.weight": _llama3_factors(config, scaling)}
    elif _rope_type(scaling) == "longrope":
        factors = {
            f"rope_factors_{name}.weight": _listed_factors(scaling, f"{name}_factor", config)
            for name in ("long", "short")
        }
    return {name: _constant(name, values) for name, values in factors.items()}


def _constant(name: str, values: F32) -> Tensor:
    return Tensor(name, values.shape, "F32", lambda a, b: values.reshape(1, -1)[a:b])


def _scaling(config: Config) -> Config:
    """The rotary parameters of the global layers."""
    parameters = config.section("rope_parameters", "rope_scaling")
    return parameters.section("full_attention") if parameters.get("full_attention") else parameters


def _rope_type(scaling: Config) -> str:
    name = str(scaling.get("rope_type", "type") or "default").lower()
    return "longrope" if name == "su" else name


def _theta(config: Config, kind: str, *names: str) -> float | None:
    """The base of the rotary frequencies of one kind of layer."""
    parameters = config.section("rope_parameters", "rope_scaling")
    inner = parameters.section(kind)
    if inner.get("rope_theta") is not None:
        return inner.positive("rope_theta")
    if kind == "full_attention" and parameters.get("rope_theta") is not None:
        return parameters.positive("rope_theta")
    return None if config.get(*names) is None else config.positive(*names)


def _rope_keys(config: Config, architecture: Architecture) -> Iterator[tuple[str, Any]]:
    yield "rope.freq_base", _theta(config, "full_attention", "rope_theta")
    yield "rope.freq_base_swa", _theta(config, "sliding_attention", "rope_local_base_freq")
    scaling = _scaling(config)
    kind = _rope_type(scaling)
    known = [*_SIMPLE, *architecture.rope_factors]
    if kind not in known:
        raise UnsupportedModelError(
            f"{config.path}: rope_type {kind[:40]!r} is not computed by llama.cpp's "
            f"{architecture.name} graph; expected one of {', '.join(known)}"
        )
    yield from _SCALING_KEYS[kind](config, scaling)


def _no_keys(config: Config, scaling: Config) -> Iterator[tuple[str, Any]]:
    del config, scaling
    yield from ()


def _linear_keys(config: Config, scaling: Config) -> Iterator[tuple[str, Any]]:
    del config
    yield "rope.scaling.type", "linear"
    yield "rope.scaling.factor", scaling.positive("factor")


def _original_context(config: Config, scaling: Config) -> int:
    name = "original_max_position_embeddings"
    source = scaling if scaling.get(name) is not None else config
    return source.count(name, "max_position_embeddings")


def _yarn_keys(config: Config, scaling: Config) -> Iterator[tuple[str, Any]]:
    """YaRN. llama.cpp scales the attention by 0.1 ln(factor) + 1 itself."""
    for name, default in _YARN_DEFAULTS.items():
        if scaling.get(name) not in (None, default):
            raise UnsupportedModelError(
                f"{config.path}: YaRN with {name} {scaling.get(name)!r}; llama.cpp computes "
                f"{default}"
            )
    factor = scaling.positive("factor")
    yield "rope.scaling.type", "yarn"
    yield "rope.scaling.factor", factor
    yield "rope.scaling.original_context_length", _original_context(config, scaling)
    if scaling.get("attention_factor") is not None and factor > 1:
        own = scaling.positive("attention_factor")
        yield "rope.scaling.attn_factor", own / (0.1 * math.log(factor) + 1.0)


def _longrope_keys(config: Config, scaling: Config) -> Iterator[tuple[str, Any]]:
    original = _original_context(config, scaling)
    scale = config.count("max_position_embeddings") / original
    yield "rope.scaling.type", "longrope"
    yield "rope.scaling.original_context_length", original
    if scaling.get("attention_factor") is not None:
        yield "rope.scaling.attn_factor", scaling.positive("attention_factor")
    elif scale > 1 and original > 1:
        yield "rope.scaling.attn_factor", math.sqrt(1 + math.log(scale) / math.log(original))


_SCALING_KEYS: Mapping[str, Callable[[Config, Config], Iterator[tuple[str, Any]]]] = {
    "default": _no_keys,
    "linear": _linear_keys,
    "llama3": _no_keys,
    "yarn": _yarn_keys,
    "longrope": _longrope_keys,
}


def _llama3_factors(config: Config, scaling: Config) -> F32:
    """What to divide each rotary frequency by: 1 for short waves, `factor` for long ones.

    Waves between context / high_freq_factor and context / low_freq_factor get a mixture
    (Llama 3.1's report; transformers' _compute_llama3_parameters).
    """
    theta = _theta(config, "full_attention", "rope_theta") or 10_000.0
    dim = config.head_dim
    waves = 2 * np.pi * theta ** (np.arange(0, dim, 2) / dim)
    factor, context = scaling.positive("factor"), _original_context(config, scaling)
    low, high = scaling.positive("low_freq_factor"), scaling.positive("high_freq_factor")
    if low >= high:
        raise FileFormatError(f"{config.path}: low_freq_factor {low} is not below {high}")
    mix = np.clip((context / waves - low) / (high - low), 0, 1)
    return (1 / ((1 - mix) / factor + mix)).astype(np.float32)


def _listed_factors(scaling: Config, name: str, config: Config) -> F32:
    values, count = scaling.get(name), rope_width(config) // 2
    if not isinstance(values, list) or len(values) != count or not all(map(_is_factor, values)):
        raise FileFormatError(f"{config.path}: {name} is not a list of {count} positive numbers")
    return np.array(values, np.float32)


def _is_factor(value: Any) -> bool:
    return isinstance(value, int | float) and 0 < value < 1e30
