"""Tiny models for every branch of the forward pass: those of the fold and variants of them."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from tests.tiny_models import TINY, Tiny, write_tensors, write_tiny
from tqgguf.models import open_model


@dataclass(frozen=True)
class Variant:
    """A tiny model with other metadata, other tensors, or another number of layers.

    keys: None drops a key. changed: lines that stand for those of the same name. added: lines of
    every layer. quiet: what tensors are divided by, so that what many layers do to rounding errors
    stays small.
    """

    base: str
    keys: dict = field(default_factory=dict)
    changed: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    outside: str = ""
    layers: int = 2
    sizes: dict = field(default_factory=dict)
    quiet: dict = field(default_factory=dict)


_POST_NORMS = dict.fromkeys(("post_attention_norm", "post_ffw_norm"), 80)
_LITTLE_QUIET = dict.fromkeys(_POST_NORMS, 10)
_HEAD_NORMS = dict.fromkeys(("attn_q_norm", "attn_k_norm"), 5)
_YARN = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 32,
}
_EIGHT = {"E": 8}  # experts
_V3 = {
    "expert_count": 8,
    "expert_group_count": 4,
    "expert_group_used_count": 2,
    "expert_gating_func": 2,
    "expert_weights_norm": True,
}

VARIANTS: dict[str, Variant] = {
    "gemma2": Variant("gemma2", quiet=_LITTLE_QUIET),
    "gemma3": Variant("gemma3", quiet=_LITTLE_QUIET),
    "gemma2-tight": Variant(
        "gemma2", {"attn_logit_softcapping": 4.0, "final_logit_softcapping": 2.0}
    ),
    "gemma2-by-default": Variant(
        "gemma2",
        {"attn_logit_softcapping": None, "final_logit_softcapping": None},
        quiet=_LITTLE_QUIET,
    ),
    "gemma2-27b": Variant("gemma2", layers=46, sizes={"D": 96}, quiet=_POST_NORMS),
    "gemma3-windowed": Variant(
        "gemma3",
        {
            "attention.sliding_window": 20,
            "rope.freq_base": 1000.0,
            "rope.scaling.type": "linear",
            "rope.scaling.factor": 8.0,
            "final_logit_softcapping": 2.0,
        },
        layers=6,
        quiet=_POST_NORMS,
    ),
    "gemma3-pattern": Variant(
        "gemma3",
        {"attention.sliding_window": 20, "attention.sliding_window_pattern": [False, True]},
        quiet=_POST_NORMS,
    ),
    "gemma3-27b": Variant("gemma3", layers=62, sizes={"D": 96}, quiet=_POST_NORMS | _HEAD_NORMS),
    "olmo2-windowed": Variant(
        "olmo2", {"attention.sliding_window": 20, **_YARN}, layers=4, quiet=_LITTLE_QUIET
    ),
    "exaone4-32b": Variant(
        "exaone4", {"attention.sliding_window": 20}, layers=64, quiet=_POST_NORMS | _HEAD_NORMS
    ),
    "smollm3-deep": Variant("smollm3", layers=4),
    "cohere2-deep": Variant("cohere2", layers=4),
    "gpt-oss-yarn": Variant("gpt-oss", _YARN),
    "mistral3-yarn": Variant(
        "mistral3",
        {
            **_YARN,
            "rope.scaling.yarn_log_multiplier": 0.7,
            "rope.scaling.yarn_beta_fast": 8.0,
            "rope.scaling.yarn_beta_slow": 2.0,
        },
    ),
    "llama-with-keys-of-others": Variant(
        "llama",
        {
            **_YARN,
            "rope.scaling.yarn_log_multiplier": 0.7,
            "rope.scaling.yarn_beta_fast": 8.0,
            "rope.freq_base_swa": 100.0,
            "attention.sliding_window": 20,
            "attention.temperature_scale": 0.5,
            "attention.clamp_kqv": 0.5,
            "attention.max_alibi_bias": 8.0,
            "attention.scale": 0.5,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 2.0,
            "embedding_scale": 3.0,
            "residual_scale": 0.3,
            "logit_scale": 2.0,
            "expert_weights_scale": 1.5,
            "use_parallel_residual": True,
        },
    ),
    "phi3-long": Variant(
        "phi3",
        {"rope.scaling.original_context_length": 32, "rope.scaling.attn_factor": 1.2},
    ),
    "phi3-longrope": Variant(
        "phi3",
        {
            "rope.scaling.type": "longrope",
            "rope.scaling.original_context_length": 32,
            "rope.scaling.attn_factor": 1.2,
        },
    ),
    "llama-longrope": Variant(
        "llama", {"rope.scaling.type": "longrope", "rope.scaling.factor": 4.0}
    ),
    "glm4-sections": Variant("glm4", {"rope.dimension_sections": [4, 2, 2, 0]}),
    "glm4moe-sections": Variant("glm4moe", {"rope.dimension_sections": [4, 2, 1, 1]}),
    "glm4moe-by-default": Variant(
        "glm4moe",
        {"expert_gating_func": None, "expert_weights_norm": True},
        added=("attn_q_norm H", "attn_k_norm H"),
    ),
    "glm4moe-predicting": Variant("glm4moe", {"block_count": 3, "nextn_predict_layers": 1}),
    "mpt-clamped": Variant(
        "mpt",
        {"attention.clamp_kqv": 0.5, "attention.max_alibi_bias": None},
        outside="; position_embd C D",
    ),
    "mpt-six-heads": Variant("mpt", sizes={"D": 96, "Q": 96, "K": 96}),
    "olmo-clamped": Variant("olmo", {"attention.clamp_kqv": 0.5}),
    "command-r-plus": Variant(
        "command-r",
        added=("attn_q_norm 4 H", "attn_k_norm 2 H"),
        layers=64,
        quiet={"attn_output": 20, "ffn_down": 20, **_HEAD_NORMS},
    ),
    "granite-still": Variant("granite", {"rope.scaling.finetuned": False}),
    "granitemoe-shared": Variant(
        "granitemoe",
        {"expert_shared_feed_forward_length": 96},
        added=("ffn_gate_shexp F D", "ffn_up_shexp F D", "ffn_down_shexp D F"),
    ),
    "starcoder-one-key": Variant("starcoder", sizes={"K": 16}),
    "apertus-by-layer": Variant(
        "apertus", {"xielu.alpha_n": [0.8, 0.1], "xielu.alpha_p": [0.6, 1.6]}
    ),
    "qwen35-groups": Variant(
        "qwen35",
        {"ssm.group_count": 2, "rope.dimension_sections": [3, 3, 2, 0]},
        changed=("attn_qkv 128 D", "ssm_conv1d 128 4"),
    ),
    "deepseek2-v3": Variant(
        "deepseek2", {**_V3, **_YARN, "rope.scaling.yarn_log_multiplier": 0.1}, sizes=_EIGHT
    ),
    "deepseek2-yarn": Variant("deepseek2", {**_YARN, "rope.scaling.yarn_log_multiplier": 0.0707}),
    "deepseek2-large": Variant(
        "deepseek2", {"attention.temperature_scale": 0.5, "attention.temperature_length": 32}
    ),
    "deepseek2-unsplit": Variant(
        "deepseek2",
        {
            "attention.key_length_mla": None,
            "attention.value_length_mla": None,
            "attention.key_length": 24,
            "attention.value_length": 16,
            "attention.head_count_kv": 4,
        },
        added=("attn_kv_b 128 32",),
        without=("attn_k_b", "attn_v_b"),
    ),
    "deepseek2-joined": Variant(
        "deepseek2-lite",
        added=("ffn_gate_up_exps E F+F D",),
        without=("ffn_gate_exps", "ffn_up_exps"),
    ),
    "bailingmoe2-groups": Variant("bailingmoe2", _V3, sizes=_EIGHT),
}
GRAPHS = tuple(dict.fromkeys((*TINY, *VARIANTS)))


def architecture(name: str) -> str:
    """The architecture of a graph."""
    return TINY[VARIANTS[name].base if name in VARIANTS else name].arch


def write_graph(path: Path, name: str, n_vocab: int = 2048) -> Path:
    """Write the tiny model of VARIANTS or, where there is none, of TINY."""
    few = {"V": n_vocab}
    if name not in VARIANTS:
        return write_tiny(path, name, sizes=few, words=False)
    variant = VARIANTS[name]
    write_tiny(path, _applied(variant), layers=variant.layers, sizes=few, words=False)
    tensors = {n: t.read() for n, t in open_model(path).tensors.items()}
    for tensor in tensors:
        tensors[tensor] = tensors[tensor] / np.float32(variant.quiet.get(tensor.split(".")[-2], 1))
    copy = path.with_suffix(".quiet.gguf")
    return write_tensors(copy, path, tensors).replace(path)


def _applied(variant: Variant) -> Tiny:
    base = TINY[variant.base]
    keys = {k: v for k, v in {**base.keys, **variant.keys}.items() if v is not None}
    return replace(
        base,
        layer=_changed(base.layer, variant),
        first=_changed(base.first, variant) if base.first else "",
        outside=base.outside + variant.outside,
        keys=keys,
        sizes={**base.sizes, **variant.sizes},
    )


def _changed(layer: str, variant: Variant) -> str:
    lines = {line.split()[0]: line for line in layer.strip().splitlines()}
    lines |= {line.split()[0]: line for line in variant.changed if line.split()[0] in lines}
    lines |= {line.split()[0]: line for line in variant.added}
    return "\n".join(line for name, line in lines.items() if name not in variant.without)
