"""DeepSeek V3: attention through a latent, experts in groups."""

import re
from collections.abc import Mapping

from gguf import ExpertGatingFuncType

from tqgguf.models.huggingface.architecture import SIZES, Architecture, Key
from tqgguf.models.huggingface.changes import decompressed
from tqgguf.models.huggingface.families._parts import (
    BASE,
    ENDS,
    EXPERTS,
    GATED,
    MOE,
    NO,
    RMS,
    SHARED,
    SILU,
    count,
    dense_layers,
    first_dense,
    number,
    optional_count,
)

_DEEPSEEK3 = Architecture(
    "deepseek2",
    {
        **ENDS,
        "blk.{}.attn_norm.weight": "E",
        "blk.{}.attn_q_a.weight": "Lq E",
        "blk.{}.attn_q_a_norm.weight": "Lq",
        "blk.{}.attn_q_b.weight": "Qm Lq",
        "blk.{}.attn_kv_a_mqa.weight": "Ka E",
        "blk.{}.attn_kv_a_norm.weight": "Lk",
        "blk.{}.attn_k_b.weight": "B Lk Nk",
        "blk.{}.attn_v_b.weight": "B Vv Lk",
        "blk.{}.attn_output.weight": "E Vm",
        "blk.{}.ffn_norm.weight": "E",
        **{name: f"{size} @dense" for name, size in GATED.items()},
        **{name: f"{size} @experts" for name, size in EXPERTS.items()},
        "blk.{}.exp_probs_b.bias": "X @experts",
        **SHARED,
    },
    (
        *(key for key in BASE if key.name != "attention.head_count_kv"),
        Key("attention.head_count_kv", lambda _: 1),  # one latent for all heads
        *RMS,
        count("attention.q_lora_rank", "q_lora_rank"),
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
        count("expert_feed_forward_length", "moe_intermediate_size"),
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
    layer_kind=first_dense,
    latent_yarn=True,
)

CLASSES: Mapping[str, Architecture] = {
    "DeepseekV3ForCausalLM": _DEEPSEEK3,
}
