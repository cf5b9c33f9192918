"""Llama's graph and those next to it: Mistral, Mixtral, SmolLM3, Arcee, Seed-OSS."""

from collections.abc import Mapping
from dataclasses import replace

from tqgguf.models.huggingface.architecture import Architecture, Key
from tqgguf.models.huggingface.families._parts import (
    ATTENTION,
    BASE,
    ENDS,
    EXPERTS,
    GATED,
    GATED_BIAS,
    HEAD_KEYS,
    MOE,
    NO,
    PAIRS,
    QKV_BIAS,
    RMS,
    ROPE_WIDTH,
    SILU,
    UP_DOWN,
)
from tqgguf.models.huggingface.folder import Config

LLAMA = Architecture(
    "llama",
    {**ENDS, **ATTENTION, **QKV_BIAS, **GATED, **GATED_BIAS},
    (*BASE, *RMS, *HEAD_KEYS, *ROPE_WIDTH),
    assumes={"hidden_act": SILU},
    changes=PAIRS,
    rope_factors=("llama3", "longrope"),
)


def _every_fourth_without_rope(config: Config) -> str | None:
    """SmolLM3: llama.cpp's graph leaves out the rotation in every fourth layer."""
    computed = [int((i + 1) % 4 != 0) for i in range(config.n_layer)]
    step = config.count("no_rope_layer_interval") if config.get("no_rope_layer_interval") else 4
    asked = config.get("no_rope_layers") or [
        int((i + 1) % step != 0) for i in range(config.n_layer)
    ]
    if asked == computed:
        return None
    return "no_rope_layers is not every fourth layer, which is what llama.cpp's graph computes"


_SMOLLM3 = Architecture(
    "smollm3",
    {**ENDS, **ATTENTION, **GATED},
    (*BASE, *RMS, *HEAD_KEYS, *ROPE_WIDTH),
    assumes={
        "hidden_act": SILU,
        **dict.fromkeys(("attention_bias", "mlp_bias", "use_sliding_window"), NO),
    },
    defaults={"rope_theta": 2_000_000.0},
    check=_every_fourth_without_rope,
    changes=PAIRS,
)

_ARCEE = replace(
    LLAMA,
    name="arcee",
    tensors={**ENDS, **ATTENTION, **UP_DOWN},
    assumes={"hidden_act": ("relu2",), "attention_bias": NO, "mlp_bias": NO},
    defaults={"hidden_act": "relu2"},
    rope_factors=(),
)
_SEED_OSS = Architecture(
    "seed_oss",
    {
        **ENDS,
        "blk.{}.attn_norm.weight": "E",
        "blk.{}.attn_q.weight": "Q E",
        "blk.{}.attn_k.weight": "K E",
        "blk.{}.attn_v.weight": "K E",
        **QKV_BIAS,
        "blk.{}.attn_output.weight": "E Q",
        "blk.{}.post_attention_norm.weight": "E",
        **GATED,
    },
    (*BASE, *RMS, *HEAD_KEYS),
    assumes={"hidden_act": SILU, "attention_out_bias": NO, "mlp_bias": NO},
)


def _temperature(config: Config) -> float | None:
    """By how much queries grow with the position (Llama 4's scaling, in Ministral 3)."""
    rope = config.section("rope_parameters", "rope_scaling")
    name = "llama_4_scaling_beta"
    return rope.number(name) if rope.get(name) else None


_MISTRAL3 = replace(
    LLAMA,
    name="mistral3",
    tensors={**ENDS, **ATTENTION, "blk.{}.attn_output.bias": "E ?", **GATED},
    keys=(*LLAMA.keys, Key("attention.temperature_scale", _temperature)),
    rope_reads=("llama_4_scaling_beta",),
    yarn_ramps=True,
)

CLASSES: Mapping[str, Architecture] = {
    "LlamaForCausalLM": LLAMA,
    "MistralForCausalLM": LLAMA,
    "MixtralForCausalLM": Architecture(
        "llama",
        {**ENDS, **ATTENTION, **EXPERTS},
        (*LLAMA.keys, *MOE),
        assumes={"hidden_act": SILU},
        defaults={"rope_theta": 1_000_000.0},
        changes=PAIRS,
        rope_factors=("llama3", "longrope"),
    ),
    "LlamaModel": LLAMA,
    "Mistral3ForConditionalGeneration": _MISTRAL3,
    "Ministral3ForCausalLM": _MISTRAL3,
    "SmolLM3ForCausalLM": _SMOLLM3,
    "ArceeForCausalLM": _ARCEE,
    "SeedOssForCausalLM": _SEED_OSS,
}
