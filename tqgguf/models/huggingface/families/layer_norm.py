"""Models with LayerNorm: GPT-2, StarCoder2, GPT-NeoX and Pythia, Phi 2, StableLM, Nemotron."""

import math
import re
from collections.abc import Mapping

import numpy as np

from tqgguf.kernels.dtypes import I64
from tqgguf.models.huggingface.architecture import Architecture, Key, rope_width
from tqgguf.models.huggingface.changes import reordered
from tqgguf.models.huggingface.families._parts import (
    ATTENTION,
    BASE,
    BIASED_NORMS,
    ENDS,
    GATED,
    GELU,
    HEAD_KEYS,
    LAYER_NORM,
    NO,
    PLUS_ONE,
    QKV_BIAS,
    SILU,
    UP_DOWN,
    with_keys,
)
from tqgguf.models.huggingface.folder import Config


def _by_head(config: Config) -> I64:
    """Rows of GPT-NeoX's queries, keys and values, which lie head by head, in ggml's order."""
    shape = (config.n_head, 3, config.head_dim)
    return np.arange(math.prod(shape)).reshape(shape).swapaxes(0, 1).reshape(-1)


def _exact_gelu(config: Config) -> str | None:
    if config.get("hidden_act") != "gelu":
        return None
    return "hidden_act is the exact GELU, of which llama.cpp's graph computes an approximation"


_QKV = {"q": "E", "k": "K", "v": "K"}
_ROPE_WIDTH = (Key("rope.dimension_count", rope_width),)
_JOINED = {
    "blk.{}.attn_norm.weight": "E",
    "blk.{}.attn_qkv.weight": "A E",
    "blk.{}.attn_qkv.bias": "A",
    "blk.{}.attn_output.weight": "E Q",
    "blk.{}.ffn_norm.weight": "E",
}
_GPT_NEOX = Architecture(
    "gptneox",
    {
        **ENDS,
        "output.weight": "V E",
        **BIASED_NORMS,
        **UP_DOWN,
        **_JOINED,
        "blk.{}.attn_qkv.weight": "3E E",
        "blk.{}.attn_qkv.bias": "3E",
    },
    (
        *with_keys(BASE, Key("attention.head_count_kv", lambda c: c.n_head)),
        *LAYER_NORM,
        *_ROPE_WIDTH,
        Key("use_parallel_residual", lambda c: c.get("use_parallel_residual") is not False),
    ),
    assumes={"hidden_act": ("gelu", *GELU), "attention_bias": (True, None)},
    defaults={"partial_rotary_factor": 0.25},
    changes=((re.compile(r"\.query_key_value\."), lambda t, c: reordered(t, _by_head(c))),),
    remark=_exact_gelu,
    partial_rotary=True,
)
_PHI2 = Architecture(
    "phi2",
    {
        **ENDS,
        "output.weight": "V E",
        "output.bias": "V",
        "output_norm.bias": "E",
        "blk.{}.attn_norm.weight": "E",
        "blk.{}.attn_norm.bias": "E",
        **{f"blk.{{}}.attn_{name}.weight": f"{size} E" for name, size in _QKV.items()},
        **{f"blk.{{}}.attn_{name}.bias": size for name, size in _QKV.items()},
        "blk.{}.attn_output.weight": "E E",
        "blk.{}.attn_output.bias": "E",
        **UP_DOWN,
        "blk.{}.ffn_up.bias": "F",
        "blk.{}.ffn_down.bias": "E",
    },
    (*BASE, *LAYER_NORM, *_ROPE_WIDTH),
    assumes={"hidden_act": GELU, "qk_layernorm": NO},
    defaults={"partial_rotary_factor": 0.5},
    partial_rotary=True,
)
_STABLELM = Architecture(
    "stablelm",
    {
        **ENDS,
        "output.weight": "V E",
        "output_norm.bias": "E",
        **ATTENTION,
        "blk.{}.attn_norm.bias": "E",
        "blk.{}.ffn_norm.weight": "E ?",
        "blk.{}.ffn_norm.bias": "E ?",
        **QKV_BIAS,
        **GATED,
    },
    (
        *BASE,
        *LAYER_NORM,
        *_ROPE_WIDTH,
        Key("use_parallel_residual", lambda c: bool(c.get("use_parallel_residual"))),
    ),
    assumes={"hidden_act": SILU, "qk_layernorm": NO},
    defaults={"partial_rotary_factor": 0.25},
    partial_rotary=True,
)

_NEMOTRON = Architecture(
    "nemotron",
    {
        **ENDS,
        "output.weight": "V E",
        "output_norm.bias": "E",
        **ATTENTION,
        "blk.{}.attn_norm.bias": "E",
        "blk.{}.ffn_norm.bias": "E",
        **UP_DOWN,
    },
    (*BASE, *LAYER_NORM, *HEAD_KEYS, *_ROPE_WIDTH),
    assumes={"hidden_act": ("relu2",), "attention_bias": NO, "mlp_bias": NO},
    defaults={"partial_rotary_factor": 0.5, "hidden_act": "relu2"},
    changes=PLUS_ONE,
    partial_rotary=True,
)

CLASSES: Mapping[str, Architecture] = {
    "NemotronForCausalLM": _NEMOTRON,
    "GPTNeoXForCausalLM": _GPT_NEOX,
    "PhiForCausalLM": _PHI2,
    "StableLmForCausalLM": _STABLELM,
    "GPT2LMHeadModel": Architecture(
        "gpt2",
        {
            **ENDS,
            **BIASED_NORMS,
            **UP_DOWN,
            "position_embd.weight": "P E",
            **_JOINED,
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
