"""GLM 4.x with experts."""

from collections.abc import Mapping

from gguf import ExpertGatingFuncType

from tqgguf.models.huggingface.architecture import Architecture, Key, rope_width
from tqgguf.models.huggingface.families._parts import (
    BASE,
    ENDS,
    EXPERTS,
    GATED,
    HEADS,
    MOE,
    QK_NORM,
    QKV_BIAS,
    RMS,
    SHARED,
    SILU,
    count,
    dense_layers,
    first_dense,
    number,
    optional_count,
)

_GLM4_MOE = Architecture(
    "glm4moe",
    {
        **ENDS,
        "blk.{}.attn_norm.weight": "E",
        "blk.{}.attn_q.weight": "Q E",
        "blk.{}.attn_k.weight": "K E",
        "blk.{}.attn_v.weight": "K E",
        **QKV_BIAS,
        **{name: f"{size} ?" for name, size in QK_NORM.items()},
        "blk.{}.attn_output.weight": "E Q",
        "blk.{}.post_attention_norm.weight": "E",
        **{name: f"{size} @dense" for name, size in GATED.items()},
        **{name: f"{size} @experts" for name, size in EXPERTS.items()},
        "blk.{}.exp_probs_b.bias": "X @experts",
        **SHARED,
    },
    (
        *BASE,
        *RMS,
        *HEADS,
        Key("rope.dimension_count", rope_width),
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
    assumes={"hidden_act": SILU, "n_group": (1, None), "topk_group": (1, None)},
    defaults={"partial_rotary_factor": 0.5, "n_shared_experts": 1, "routed_scaling_factor": 1.0},
    layer_kind=first_dense,
    special={"bos": "[gMASK]", "eot": "<|user|>", "eom": "<|observation|>", "unk": "<|endoftext|>"},
    partial_rotary=True,
)

CLASSES: Mapping[str, Architecture] = {
    "Glm4MoeForCausalLM": _GLM4_MOE,
}
