"""Qwen 2 and 3, dense and with experts."""

from collections.abc import Mapping

from tqgguf.models.huggingface.architecture import Architecture
from tqgguf.models.huggingface.families._parts import (
    ATTENTION,
    BASE,
    ENDS,
    EXPERTS,
    GATED,
    HEADS,
    MOE,
    NO,
    QK_NORM,
    QKV_BIAS,
    RMS,
    SILU,
    count,
)

_QWEN2 = Architecture(
    "qwen2",
    {**ENDS, **ATTENTION, **QKV_BIAS, **GATED},
    (*BASE, *RMS),
    assumes={"hidden_act": SILU, "use_mrope": NO},
)

_QWEN3 = Architecture(
    "qwen3",
    {**ENDS, **ATTENTION, **QK_NORM, **GATED},
    (*BASE, *RMS, *HEADS),
    assumes={"hidden_act": SILU, "attention_bias": NO},
    ranks=True,
)

CLASSES: Mapping[str, Architecture] = {
    "Qwen2ForCausalLM": _QWEN2,
    "Qwen2Model": _QWEN2,
    "Qwen3ForCausalLM": _QWEN3,
    "Qwen3Model": _QWEN3,
    "Qwen3MoeForCausalLM": Architecture(
        "qwen3moe",
        {**ENDS, **ATTENTION, **QK_NORM, **EXPERTS},
        (*_QWEN3.keys, *MOE, count("expert_feed_forward_length", "moe_intermediate_size")),
        assumes={**_QWEN3.assumes, "norm_topk_prob": (True,)},
    ),
}
