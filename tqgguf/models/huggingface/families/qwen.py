"""Qwen 2 and 3: dense, with experts, and the language models of those that see."""

from collections.abc import Mapping
from dataclasses import replace

from tqgguf.models.huggingface.architecture import Architecture, Key
from tqgguf.models.huggingface.families._parts import (
    ATTENTION,
    BASE,
    ENDS,
    EXPERT_WIDTH,
    EXPERTS,
    GATED,
    GATED_SHARED,
    HEAD_KEYS,
    MOE,
    NO,
    QK_NORM,
    QKV_BIAS,
    RMS,
    SECTIONS,
    SILU,
    count,
)
from tqgguf.models.huggingface.folder import Config

_QWEN2 = Architecture(
    "qwen2",
    {**ENDS, **ATTENTION, **QKV_BIAS, **GATED},
    (*BASE, *RMS),
    assumes={"hidden_act": SILU, "use_mrope": NO},
)

_QWEN3 = Architecture(
    "qwen3",
    {**ENDS, **ATTENTION, **QK_NORM, **GATED},
    (*BASE, *RMS, *HEAD_KEYS),
    assumes={"hidden_act": SILU, "attention_bias": NO},
    ranks=True,
)

_QWEN2_MOE = Architecture(
    "qwen2moe",
    {**ENDS, **ATTENTION, **QKV_BIAS, **EXPERTS, **GATED_SHARED},
    (
        *_QWEN2.keys,
        *MOE,
        *EXPERT_WIDTH,
        count("expert_shared_feed_forward_length", "shared_expert_intermediate_size"),
    ),
    assumes={**_QWEN2.assumes, "norm_topk_prob": NO, "decoder_sparse_step": (1, None)},
)

_QWEN3_MOE = Architecture(
    "qwen3moe",
    {**ENDS, **ATTENTION, **QK_NORM, **EXPERTS},
    (*_QWEN3.keys, *MOE, *EXPERT_WIDTH),
    assumes={**_QWEN3.assumes, "norm_topk_prob": (True,)},
)

_MROPE = ("mrope_section", "mrope_interleaved")
_QWEN2_VL = replace(
    _QWEN2,
    name="qwen2vl",
    keys=(*_QWEN2.keys, *SECTIONS),
    assumes={"hidden_act": SILU},
    rope_reads=_MROPE,
)


def _deepstack(config: Config) -> int:
    """Layers to which the vision tower, a file of its own, adds features of an image."""
    layers = config.section("vision_config").get("deepstack_visual_indexes")
    return len(layers) if isinstance(layers, list) else 0


_QWEN3_VL = replace(
    _QWEN3,
    name="qwen3vl",
    keys=(*_QWEN3.keys, *SECTIONS, Key("n_deepstack_layers", _deepstack)),
    rope_reads=_MROPE,
    ranks=False,
)

_QWEN3_VL_MOE = replace(
    _QWEN3_MOE,
    name="qwen3vlmoe",
    keys=(*_QWEN3_MOE.keys, *_QWEN3_VL.keys[len(_QWEN3.keys) :]),
    assumes=_QWEN3.assumes,
    rope_reads=_MROPE,
    experts_may_turn=True,
)

CLASSES: Mapping[str, Architecture] = {
    "Qwen2ForCausalLM": _QWEN2,
    "Qwen2Model": _QWEN2,
    "Qwen2MoeForCausalLM": _QWEN2_MOE,
    "Qwen2VLForConditionalGeneration": _QWEN2_VL,
    "Qwen2_5_VLForConditionalGeneration": _QWEN2_VL,
    "Qwen3ForCausalLM": _QWEN3,
    "Qwen3Model": _QWEN3,
    "Qwen3MoeForCausalLM": _QWEN3_MOE,
    "Qwen3VLForConditionalGeneration": _QWEN3_VL,
    "Qwen3VLMoeForConditionalGeneration": _QWEN3_VL_MOE,
}
