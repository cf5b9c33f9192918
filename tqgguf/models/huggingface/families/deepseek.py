"""DeepSeek V2 and V3, Kimi K2: attention through a latent, experts in groups; and dots.llm1."""

import re
from collections.abc import Mapping
from dataclasses import replace

from gguf import ExpertGatingFuncType

from tqgguf.models.huggingface.architecture import SIZES, Architecture, Key
from tqgguf.models.huggingface.changes import decompressed
from tqgguf.models.huggingface.families._parts import (
    ATTENTION,
    BASE,
    ENDS,
    EXPERT_WIDTH,
    EXPERTS,
    GATED,
    HEAD_KEYS,
    MOE,
    NO,
    QK_NORM,
    RMS,
    SHARED,
    SILU,
    count,
    dense_layers,
    first_dense,
    number,
    of_kind,
    optional_count,
    with_keys,
)
from tqgguf.models.huggingface.folder import Config


def _has_latent(config: Config) -> bool:
    """Whether queries come from a latent too, as keys and values do."""
    return config.get("q_lora_rank") is not None


def _kind(config: Config, layer: int) -> str:
    return f"{first_dense(config, layer)} {'latent' if _has_latent(config) else 'plain'}"


_CHOICE = "blk.{}.exp_probs_b.bias"  # added where experts are chosen, not to their shares
_DEEPSEEK3 = Architecture(
    "deepseek2",
    {
        **ENDS,
        "blk.{}.attn_norm.weight": "E",
        "blk.{}.attn_q.weight": "Qm E @plain",
        "blk.{}.attn_q_a.weight": "Lq E @latent",
        "blk.{}.attn_q_a_norm.weight": "Lq @latent",
        "blk.{}.attn_q_b.weight": "Qm Lq @latent",
        "blk.{}.attn_kv_a_mqa.weight": "Ka E",
        "blk.{}.attn_kv_a_norm.weight": "Lk",
        "blk.{}.attn_k_b.weight": "B Lk Nk",
        "blk.{}.attn_v_b.weight": "B Vv Lk",
        "blk.{}.attn_output.weight": "E Vm",
        "blk.{}.ffn_norm.weight": "E",
        **of_kind("dense", GATED),
        **of_kind("experts", EXPERTS),
        _CHOICE: "X @experts",
        **SHARED,
    },
    (
        *with_keys(BASE, Key("attention.head_count_kv", lambda _: 1)),  # one latent for all heads
        *RMS,
        Key("attention.q_lora_rank", lambda c: c.count("q_lora_rank") if _has_latent(c) else 0),
        count("attention.kv_lora_rank", "kv_lora_rank"),
        Key("attention.key_length", SIZES["Ka"]),
        Key("attention.value_length", SIZES["Lk"]),
        Key(
            "attention.key_length_mla",
            lambda c: c.count("qk_nope_head_dim") + c.count("qk_rope_head_dim"),
        ),
        count("attention.value_length_mla", "v_head_dim"),
        count("rope.dimension_count", "qk_rope_head_dim"),
        *MOE,
        *EXPERT_WIDTH,
        count("expert_shared_count", "n_shared_experts"),
        Key("leading_dense_block_count", dense_layers),
        Key("expert_gating_func", lambda _: int(ExpertGatingFuncType.SIGMOID)),
        optional_count("expert_group_count", "n_group"),
        optional_count("expert_group_used_count", "topk_group"),
        number("expert_weights_scale", "routed_scaling_factor"),
        Key("expert_weights_norm", lambda c: c.get("norm_topk_prob") is True or None),
    ),
    assumes={
        "hidden_act": SILU,
        "attention_bias": NO,
        "rope_interleave": (True, None),
        "scoring_func": ("sigmoid", None),
    },
    defaults={"rms_norm_eps": 1e-6, "routed_scaling_factor": 2.5},
    splits=(
        (
            re.compile(r"\.kv_b_proj\.weight$"),
            lambda t, c: decompressed(t, c.n_head, c.count("qk_nope_head_dim")),
        ),
    ),
    layer_kind=_kind,
    latent_yarn=True,
)


def _groups_by_their_best(config: Config) -> str | None:
    """What llama.cpp's graph does otherwise in DeepSeek-V2, whose released files it runs."""
    if config.get("topk_method") != "group_limited_greedy":
        return None
    return "groups of experts are chosen by their best one, in llama.cpp by their best two"


_DEEPSEEK2 = replace(
    _DEEPSEEK3,
    tensors={name: size for name, size in _DEEPSEEK3.tensors.items() if name != _CHOICE},
    keys=with_keys(
        _DEEPSEEK3.keys, Key("expert_gating_func", lambda _: int(ExpertGatingFuncType.SOFTMAX))
    ),
    assumes={
        **_DEEPSEEK3.assumes,
        "mlp_bias": NO,
        "norm_topk_prob": NO,
        "scoring_func": ("softmax", None),
        "topk_method": ("greedy", "group_limited_greedy", None),
    },
    defaults={"rms_norm_eps": 1e-6, "routed_scaling_factor": 1.0, "n_shared_experts": 2},
    remark=_groups_by_their_best,
)


def _all_heads_have_keys(config: Config) -> str | None:
    if config.n_head == config.n_head_kv:
        return None
    return (
        f"{config.n_head_kv} heads have keys, {config.n_head} queries; llama.cpp's dots1 graph has "
        "as many of both"
    )


_DOTS1 = Architecture(
    "dots1",
    {
        **ENDS,
        "output.weight": "V E",
        **ATTENTION,
        **QK_NORM,
        **of_kind("dense", GATED),
        **of_kind("experts", EXPERTS),
        _CHOICE: "X @experts",
        **SHARED,
    },
    (
        *BASE,
        *RMS,
        *HEAD_KEYS,
        *MOE,
        *EXPERT_WIDTH,
        count("expert_shared_count", "n_shared_experts"),
        Key("leading_dense_block_count", dense_layers),
        Key("expert_gating_func", lambda _: int(ExpertGatingFuncType.SIGMOID)),
        optional_count("expert_group_count", "n_group"),
        optional_count("expert_group_used_count", "topk_group"),
        number("expert_weights_scale", "routed_scaling_factor"),
        Key("expert_weights_norm", lambda c: bool(c.get("norm_topk_prob"))),
    ),
    assumes={
        "hidden_act": SILU,
        "attention_bias": NO,
        "n_group": (1, None),
        "topk_group": (1, None),
        "scoring_func": ("sigmoid", "noaux_tc", None),
    },
    defaults={"routed_scaling_factor": 1.0},
    check=_all_heads_have_keys,
    layer_kind=first_dense,
)

CLASSES: Mapping[str, Architecture] = {
    "Dots1ForCausalLM": _DOTS1,
    "DeepseekV2ForCausalLM": _DEEPSEEK2,
    "DeepseekV3ForCausalLM": _DEEPSEEK3,
}
