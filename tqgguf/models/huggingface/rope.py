"""Rotary position embeddings: from rope_scaling or rope_parameters to GGUF keys and tensors.

Every key that stands there is used or refused by name: a factor that is dropped in silence costs
nats, and nothing else would tell.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tqgguf.errors import FileFormatError, UnsupportedModelError
from tqgguf.kernels.dtypes import F32
from tqgguf.models.huggingface.architecture import Architecture, rope_width
from tqgguf.models.huggingface.folder import Config
from tqgguf.models.model import Tensor

Pairs = Iterator[tuple[str, Any]]
_SECTIONS = ("rope_parameters", "rope_scaling")  # the newer and the older name
_KINDS_OF_LAYERS = ("full_attention", "sliding_attention")
_PARTIAL = "partial_rotary_factor"
_COMMON = (
    *("rope_type", "type", "rope_theta", "partial_rotary_factor"),
    "max_position_embeddings",  # repeated from outside
)
_ORIGINAL = "original_max_position_embeddings"
# Values with which a key changes nothing, wherever it stands.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "factor": (1,),
    "attention_factor": (1,),
    "attn_factor": (1,),
    "extrapolation_factor": (1,),
    "truncate": (True,),
    "finetuned": (False, True),  # how the weights were made, not what is computed
    "llama_4_scaling_beta": (0,),
    "partial_rotary_factor": (1,),
    _ORIGINAL: (),
}
_OLDER = {"su": "longrope", "mrope": "default"}  # what mrope adds are its sections
_BETAS = {"beta_fast": 32, "beta_slow": 1}  # what llama.cpp computes with


@dataclass(frozen=True)
class RopeKind:
    """One rope_type: the keys that it reads, and the GGUF keys and tensors that follow."""

    reads: tuple[str, ...] = ()
    keys: Callable[[Config, Config], Pairs] = lambda *_: iter(())
    tensors: Callable[[Config, Config], Mapping[str, F32]] = lambda *_: {}
    everywhere: bool = False  # every graph computes it; the others need a tensor of factors


def rope_keys(config: Config, architecture: Architecture) -> dict[str, Any]:
    """The keys `rope.*` without the architecture's prefix.

    Raises FileFormatError for wrong values, UnsupportedModelError for those that llama.cpp's graph
    does not compute.
    """
    full = _of_layers(config, "full_attention")
    kind = _kind(config, full, architecture)
    _check_read(_beside_layers(config), "default", architecture)
    _check_read(full, kind, architecture)
    _check_window(config, architecture)
    bases = {
        "rope.freq_base": _theta(config, "full_attention", "rope_theta"),
        "rope.freq_base_swa": _theta(config, "sliding_attention", "rope_local_base_freq"),
    }
    scaled = dict(_SCALINGS[kind].keys(config, full))
    if architecture.latent_yarn and kind == "yarn":
        scaled = _latent(scaled, full)
    return bases | _ramps(full, architecture) | scaled


def rope_tensors(config: Config, architecture: Architecture) -> dict[str, Tensor]:
    """Factors of the rotary frequencies that are tensors in GGUF: rope_type llama3 and longrope."""
    if not architecture.rope:
        return {}
    full = _of_layers(config, "full_attention")
    factors = _SCALINGS[_kind(config, full, architecture)].tensors(config, full)
    return {name: _constant(name, values) for name, values in factors.items()}


def _constant(name: str, values: F32) -> Tensor:
    return Tensor(name, values.shape, "F32", lambda a, b: values.reshape(1, -1)[a:b])


def _of_layers(config: Config, layers: str) -> Config:
    """The rotary parameters of one kind of layers; those of all where kinds are not told apart."""
    parameters = config.section(*_SECTIONS)
    if parameters.get(*_KINDS_OF_LAYERS) is None:
        return parameters
    return parameters.section(layers)


def _beside_layers(config: Config) -> Config:
    """What holds for all layers alike: keys outside the parameters, or beside those of a kind."""
    found = {"partial_rotary_factor": config.get("partial_rotary_factor")}
    parameters = config.section(*_SECTIONS)
    if parameters.get(*_KINDS_OF_LAYERS) is not None:
        found |= {k: v for k, v in parameters.values.items() if k not in _KINDS_OF_LAYERS}
    return Config(config.path, found)


def _kind(config: Config, scaling: Config, architecture: Architecture) -> str:
    name = str(scaling.get("rope_type", "type") or "default").lower()
    name = _OLDER.get(name, name)
    known = [k for k, row in _SCALINGS.items() if row.everywhere or k in architecture.rope_factors]
    if name not in known:
        raise UnsupportedModelError(
            f"{config.path}: rope_type {name[:40]!r} is not computed by llama.cpp's "
            f"{architecture.name} graph; expected one of {', '.join(known)}"
        )
    return name


def _check_read(scaling: Config, kind: str, architecture: Architecture) -> None:
    """UnsupportedModelError for the first key that would be dropped."""
    read = {*_COMMON, _ORIGINAL, *_SCALINGS[kind].reads, *architecture.rope_reads}
    if not architecture.partial_rotary and _PARTIAL not in _SCALINGS[kind].reads:
        read.remove("partial_rotary_factor")
    for name, value in scaling.values.items():
        if name in read or value is None or value in _NEUTRAL.get(name, ()):
            continue
        raise UnsupportedModelError(
            f"{scaling.path}: {name[:40]} is {str(value)[:60]} under rope_type {kind}, which "
            f"llama.cpp's {architecture.name} graph does not compute; without that key the model "
            "converts, and computes something else"
        )


def _check_window(config: Config, architecture: Architecture) -> None:
    """Layers with a sliding window have a base of their own and no scaling."""
    if config.section(*_SECTIONS).get("sliding_attention") is None:
        return
    sliding = _of_layers(config, "sliding_attention")
    kind = _kind(config, sliding, architecture)
    if kind != "default":
        raise UnsupportedModelError(
            f"{config.path}: rope_type {kind} in layers with a sliding window; llama.cpp's "
            f"{architecture.name} graph scales the others only"
        )
    _check_read(sliding, kind, architecture)


def _theta(config: Config, layers: str, *names: str) -> float | None:
    """The base of the rotary frequencies of one kind of layer."""
    parameters = config.section(*_SECTIONS)
    inner = parameters.section(layers)
    if inner.get("rope_theta") is not None:
        return inner.positive("rope_theta")
    if layers == "full_attention" and parameters.get("rope_theta") is not None:
        return parameters.positive("rope_theta")
    return None if config.get(*names) is None else config.positive(*names)


def _original_context(config: Config, scaling: Config) -> int:
    source = scaling if scaling.get(_ORIGINAL) is not None else config
    return source.count(_ORIGINAL, "max_position_embeddings")


def _factor(config: Config, scaling: Config) -> float:
    """By how much the context grew."""
    if scaling.get("factor") is not None:
        return scaling.positive("factor")
    return config.count("max_position_embeddings") / _original_context(config, scaling)


def _ramps(scaling: Config, architecture: Architecture) -> dict[str, float]:
    """Where YaRN's ramp begins and ends; UnsupportedModelError if the graph has others."""
    given = {name: scaling.number(name) for name in _BETAS if scaling.get(name)}
    if architecture.yarn_ramps:
        return {f"rope.scaling.yarn_{name}": value for name, value in given.items()}
    for name, value in given.items():
        if value != _BETAS[name]:
            raise UnsupportedModelError(
                f"{scaling.path}: YaRN with {name} {scaling.get(name)!r}; llama.cpp's "
                f"{architecture.name} graph computes {_BETAS[name]}"
            )
    return {}


def _latent(keys: dict[str, Any], scaling: Config) -> dict[str, Any]:
    """YaRN in DeepSeek's graph, which scales scores by the square of mscale_all_dim's scale.

    llama.cpp reads that number times 0.1, and then leaves the rotation itself unscaled, which is
    what equal mscales mean.
    """
    of_scores = scaling.get("mscale_all_dim")
    if not of_scores:
        return keys
    if scaling.get("mscale") != of_scores or scaling.get("attention_factor") is not None:
        raise UnsupportedModelError(
            f"{scaling.path}: YaRN with mscale {scaling.get('mscale')} and mscale_all_dim "
            f"{of_scores}; llama.cpp's graph computes them alike"
        )
    others = {k: v for k, v in keys.items() if k != "rope.scaling.attn_factor"}
    return others | {"rope.scaling.yarn_log_multiplier": 0.1 * scaling.number("mscale_all_dim")}


def _linear_keys(config: Config, scaling: Config) -> Pairs:
    del config
    yield "rope.scaling.type", "linear"
    yield "rope.scaling.factor", scaling.positive("factor")


def _yarn_keys(config: Config, scaling: Config) -> Pairs:
    """YaRN (2309.00071). llama.cpp scales the attention by 0.1 ln(factor) + 1 itself."""
    factor = _factor(config, scaling)
    yield "rope.scaling.type", "yarn"
    yield "rope.scaling.factor", factor
    yield "rope.scaling.original_context_length", _original_context(config, scaling)
    computed, own = _mscale(factor, 1.0), _yarn_attention(scaling, factor)
    if own != computed:
        yield "rope.scaling.attn_factor", own / computed


def _yarn_attention(scaling: Config, factor: float) -> float:
    """What queries and keys are multiplied by: given, of two mscales, or the paper's."""
    if scaling.get("attention_factor") is not None:
        return scaling.positive("attention_factor")
    above, below = (
        0.0 if scaling.get(name) is None else scaling.number(name)
        for name in ("mscale", "mscale_all_dim")
    )
    if above and below:  # one alone counts for nothing in transformers
        return _mscale(factor, above) / _mscale(factor, below)
    return _mscale(factor, 1.0)


def _mscale(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0


def _longrope_keys(config: Config, scaling: Config) -> Pairs:
    original, factor = _original_context(config, scaling), _factor(config, scaling)
    yield "rope.scaling.type", "longrope"
    yield "rope.scaling.original_context_length", original
    if scaling.get("attention_factor") is not None:
        yield "rope.scaling.attn_factor", scaling.positive("attention_factor")
    elif factor > 1 and original > 1:
        yield "rope.scaling.attn_factor", math.sqrt(1 + math.log(factor) / math.log(original))


def _llama3_tensors(config: Config, scaling: Config) -> dict[str, F32]:
    return {"rope_freqs.weight": _llama3_factors(config, scaling)}


def _longrope_tensors(config: Config, scaling: Config) -> dict[str, F32]:
    return {
        f"rope_factors_{name}.weight": _listed_factors(scaling, f"{name}_factor", config)
        for name in ("long", "short")
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


def _proportional_tensors(config: Config, scaling: Config) -> dict[str, F32]:
    """Factors of 1e30 in place of the dimensions that are not rotated, the last of each half."""
    half = config.full_head_dim // 2
    share = 1.0 if scaling.get(_PARTIAL) is None else scaling.positive(_PARTIAL)
    rotated = int(config.full_head_dim * min(share, 1.0) / 2)
    return {"rope_freqs.weight": np.where(np.arange(half) < rotated, 1, 1e30).astype(np.float32)}


def _listed_factors(scaling: Config, name: str, config: Config) -> F32:
    values, count = scaling.get(name), rope_width(config) // 2
    if not isinstance(values, list) or len(values) != count or not all(map(_is_factor, values)):
        raise FileFormatError(f"{config.path}: {name} is not a list of {count} positive numbers")
    return np.array(values, np.float32)


def _is_factor(value: Any) -> bool:
    return isinstance(value, int | float) and 0 < value < 1e30


_SCALINGS: Mapping[str, RopeKind] = {
    "default": RopeKind(everywhere=True),
    "linear": RopeKind(("factor",), _linear_keys, everywhere=True),
    "yarn": RopeKind(
        ("factor", "attention_factor", "mscale", "mscale_all_dim", *_BETAS),
        _yarn_keys,
        everywhere=True,
    ),
    "llama3": RopeKind(("factor", "low_freq_factor", "high_freq_factor"), tensors=_llama3_tensors),
    "proportional": RopeKind((_PARTIAL,), tensors=_proportional_tensors),
    "longrope": RopeKind(
        ("factor", "attention_factor", "short_factor", "long_factor"),
        _longrope_keys,
        _longrope_tensors,
    ),
}
