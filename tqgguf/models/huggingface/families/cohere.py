"""Cohere's Command R and its second version: LayerNorm without bias, attention beside the FFN."""

from collections.abc import Mapping
from dataclasses import replace

from tqgguf.models.huggingface.architecture import Architecture, Key
from tqgguf.models.huggingface.families._parts import (
    ATTENTION,
    BASE,
    ENDS,
    GATED,
    LAYER_NORM,
    NO,
    SILU,
    count,
    number,
    sliding_layers,
)

_COMMAND_R = Architecture(
    "command-r",
    {
        **ENDS,
        **{name: size for name, size in ATTENTION.items() if "ffn_norm" not in name},
        "blk.{}.attn_q.weight": "E E",
        "blk.{}.attn_output.weight": "E E",
        **GATED,
    },
    (*BASE, *LAYER_NORM, number("logit_scale", "logit_scale")),
    assumes={"hidden_act": SILU, "attention_bias": NO, "use_qk_norm": NO},
    defaults={"logit_scale": 0.0625},
    always_tied=True,
)
_COHERE2 = replace(
    _COMMAND_R,
    name="cohere2",
    keys=(
        *_COMMAND_R.keys,
        count("attention.sliding_window", "sliding_window"),
        Key("attention.sliding_window_pattern", sliding_layers(4)),
        Key("rope.dimension_count", lambda c: c.head_dim),
    ),
    defaults={"logit_scale": 0.0625, "sliding_window": 4096},
)

CLASSES: Mapping[str, Architecture] = {
    "CohereForCausalLM": _COMMAND_R,
    "Cohere2ForCausalLM": _COHERE2,
}
