"""OLMo 2 and 3, whose norms stand on what a sub-layer gives, OLMoE, and the first OLMo."""

from collections.abc import Mapping
from dataclasses import replace

from tqgguf.models.huggingface.architecture import Architecture, Key
from tqgguf.models.huggingface.families._parts import (
    ATTENTION,
    BASE,
    ENDS,
    EXPERTS,
    GATED,
    MOE,
    NO,
    PAIRS,
    RMS,
    SILU,
    count,
    optional,
    windows,
)
from tqgguf.models.huggingface.folder import Config

_OLMO2 = Architecture(
    "olmo2",
    {
        **ENDS,
        "output.weight": "V E",
        "blk.{}.attn_q.weight": "E E",
        "blk.{}.attn_k.weight": "K E",
        "blk.{}.attn_v.weight": "K E",
        "blk.{}.attn_q_norm.weight": "E",
        "blk.{}.attn_k_norm.weight": "K",
        "blk.{}.attn_output.weight": "E E",
        "blk.{}.post_attention_norm.weight": "E",
        **GATED,
        "blk.{}.post_ffw_norm.weight": "E",
    },
    (*BASE, *RMS),
    assumes={"hidden_act": SILU, "attention_bias": NO, "tie_word_embeddings": NO},
    defaults={"rope_theta": 500_000.0},
)

_OLMO3 = replace(
    _OLMO2,
    keys=(
        *_OLMO2.keys,
        count("attention.sliding_window", "sliding_window"),
        Key("attention.sliding_window_pattern", windows(4)),
    ),
    defaults={**_OLMO2.defaults, "sliding_window": 4096},
)


def _all_heads_have_keys(config: Config) -> str | None:
    if config.n_head == config.n_head_kv:
        return None
    return (
        f"{config.n_head_kv} heads have keys, {config.n_head} queries; llama.cpp's olmoe graph has "
        "as many of both"
    )


_OLMOE = Architecture(
    "olmoe",
    {
        **ENDS,
        **ATTENTION,
        "blk.{}.attn_q_norm.weight": "E",
        "blk.{}.attn_k_norm.weight": "E",
        **EXPERTS,
    },
    (*BASE, *RMS, *MOE),
    assumes={"hidden_act": SILU, "attention_bias": NO, "norm_topk_prob": NO, "clip_qkv": (None,)},
    check=_all_heads_have_keys,
)

_OLMO = Architecture(
    "olmo",
    {
        **{name: size for name, size in ENDS.items() if "norm" not in name},
        **{name: size for name, size in ATTENTION.items() if "norm" not in name},
        **GATED,
    },
    (
        *BASE,
        Key("attention.layer_norm_epsilon", lambda _: 1e-5),
        optional("attention.clamp_kqv", "clip_qkv"),
    ),
    assumes={"hidden_act": SILU, "attention_bias": NO},
    changes=PAIRS,
)

CLASSES: Mapping[str, Architecture] = {
    "OlmoForCausalLM": _OLMO,
    "OlmoeForCausalLM": _OLMOE,
    "Olmo2ForCausalLM": _OLMO2,
    "Olmo3ForCausalLM": _OLMO3,
}
