"""Models with LayerNorm and an ungated FFN: GPT-2, StarCoder2."""

import re
from collections.abc import Mapping

from tqgguf.models.huggingface.architecture import Architecture
from tqgguf.models.huggingface.families._parts import (
    ATTENTION,
    BASE,
    BIASED_NORMS,
    ENDS,
    GELU,
    LAYER_NORM,
    NO,
    QKV_BIAS,
    UP_DOWN,
)

CLASSES: Mapping[str, Architecture] = {
    "GPT2LMHeadModel": Architecture(
        "gpt2",
        {
            **ENDS,
            **BIASED_NORMS,
            **UP_DOWN,
            "position_embd.weight": "P E",
            "blk.{}.attn_norm.weight": "E",
            "blk.{}.attn_qkv.weight": "A E",
            "blk.{}.attn_qkv.bias": "A",
            "blk.{}.attn_output.weight": "E Q",
            "blk.{}.ffn_norm.weight": "E",
        },
        (*BASE, *LAYER_NORM),
        assumes={
            "activation_function": GELU,
            "scale_attn_weights": (True, None),
            "scale_attn_by_inverse_layer_idx": NO,
            "add_cross_attention": NO,
        },
        transposed=re.compile(r"\.c_(attn|proj|fc)\.weight$"),
        rope=False,
    ),
    "Starcoder2ForCausalLM": Architecture(
        "starcoder2",
        {**ENDS, **BIASED_NORMS, **ATTENTION, **QKV_BIAS, **UP_DOWN},
        (*BASE, *LAYER_NORM),
        assumes={
            "hidden_act": GELU,
            "use_bias": (True, None),
            "norm_type": ("layer_norm", None),
            "mlp_type": ("default", None),
        },
    ),
}
