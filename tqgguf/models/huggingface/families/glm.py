"""GLM 4, dense and with experts."""

from collections.abc import Mapping

from gguf import ExpertGatingFuncType

from tqgguf.models.huggingface.architecture import Architecture, Key, rope_width
from tqgguf.models.huggingface.families._parts import (
    ATTENTION,
    BASE,
    ENDS,
    EXPERT_WIDTH,
    EXPERTS,
    GATED,
    HEAD_KEYS,
    MOE,
    POST_NORMS,
    QK_NORM,
    QKV_BIAS,
    RMS,
    SHARED,
    SILU,
    count,
    dense_layers,
    first_dense,
    number,
    of_kind,
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
        **of_kind("dense", GATED),
        **of_kind("experts", EXPERTS),
        "blk.{}.exp_probs_b.bias": "X @experts",
        **SHARED,
    },
    (
        *BASE,
        *RMS,
        *HEAD_KEYS,
        Key("rope.dimension_count", rope_width),
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
    assumes={"hidden_act": SILU, "n_group": (1, None), "topk_group": (1, None)},
    defaults={"partial_rotary_factor": 0.5, "n_shared_experts": 1, "routed_scaling_factor": 1.0},
    layer_kind=first_dense,
    special={"bos": "[gMASK]", "eot": "<|user|>", "eom": "<|observation|>", "unk": "<|endoftext|>"},
    partial_rotary=True,
)

_GLM4 = Architecture(
    "glm4",
    {
        **ENDS,
        **ATTENTION,
        **QKV_BIAS,
        **POST_NORMS,
        "blk.{}.ffn_up.weight": "G E",
        "blk.{}.ffn_down.weight": "E F",
    },
    (*BASE, *RMS, *HEAD_KEYS, Key("rope.dimension_count", rope_width)),
    assumes={"hidden_act": SILU},
    defaults={"partial_rotary_factor": 0.5},
    special={
        "bos": "<|endoftext|>",
        "eos": "<|endoftext|>",
        "eot": "<|user|>",
        "unk": "<|endoftext|>",
    },
    partial_rotary=True,
)

CLASSES: Mapping[str, Architecture] = {
    "Glm4ForCausalLM": _GLM4,
    "Glm4MoeForCausalLM": _GLM4_MOE,
}
