"""What the converter knows of each architecture: one row of a table.

A row says which tensors its graph in llama.cpp loads and how wide they are, which of config.json's
values become which GGUF keys, and what that graph cannot do. To add an architecture, add a row.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
from gguf import ExpertGatingFuncType

from tqgguf.errors import FileFormatError, UnknownClassError, UnsupportedModelError
from tqgguf.kernels.dtypes import I64
from tqgguf.models.huggingface.architecture import SIZES, Architecture, Key, rope_width
from tqgguf.models.huggingface.changes import (
    decompressed,
    interleaved,
    mapped,
    reordered,
    shifted,
    with_columns,
)
from tqgguf.models.huggingface.folder import Config

# GGUF name -> letters of its shape; "?" where the graph does without it.
_ENDS = {"token_embd.weight": "V E", "output_norm.weight": "E", "output.weight": "V E ?"}
_ATTENTION = {
    "blk.{}.attn_norm.weight": "E",
    "blk.{}.attn_q.weight": "Q E",
    "blk.{}.attn_k.weight": "K E",
    "blk.{}.attn_v.weight": "K E",
    "blk.{}.attn_output.weight": "E Q",
    "blk.{}.ffn_norm.weight": "E",
}
_QKV_BIAS = {
    "blk.{}.attn_q.bias": "Q ?",
    "blk.{}.attn_k.bias": "K ?",
    "blk.{}.attn_v.bias": "K ?",
}
_QK_NORM = {"blk.{}.attn_q_norm.weight": "D", "blk.{}.attn_k_norm.weight": "D"}
_UP_DOWN = {"blk.{}.ffn_up.weight": "F E", "blk.{}.ffn_down.weight": "E F"}
_GATED = {"blk.{}.ffn_gate.weight": "F E", **_UP_DOWN}
_GATED_BIAS = {
    "blk.{}.attn_output.bias": "E ?",
    "blk.{}.ffn_gate.bias": "F ?",
    "blk.{}.ffn_up.bias": "F ?",
    "blk.{}.ffn_down.bias": "E ?",
}
_EXPERTS = {
    "blk.{}.ffn_gate_inp.weight": "X E",
    "blk.{}.ffn_gate_exps.weight": "X M E",
    "blk.{}.ffn_up_exps.weight": "X M E",
    "blk.{}.ffn_down_exps.weight": "X E M",
}
_BIASED_NORMS = {
    "output_norm.bias": "E",
    "blk.{}.attn_norm.bias": "E",
    "blk.{}.ffn_norm.bias": "E",
    "blk.{}.attn_output.bias": "E",
    "blk.{}.ffn_up.bias": "F",
    "blk.{}.ffn_down.bias": "E",
}
_POST_NORMS = {"blk.{}.post_attention_norm.weight": "E", "blk.{}.post_ffw_norm.weight": "E"}

# ggml rotates neighbouring rows of q and k.
_PAIRS = (
    (re.compile(r"\.q_proj\."), lambda t, c: interleaved(t, c.n_head)),
    (re.compile(r"\.k_proj\."), lambda t, c: interleaved(t, c.n_head_kv)),
)
_PLUS_ONE = ((re.compile(r"norm\.weight$"), lambda t, _: shifted(t, 1.0)),)

_SILU = ("silu", "swish", None)
_GELU = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", None)
_NO = (False, None)


def _count(name: str, *keys: str) -> Key:
    return Key(name, lambda c: c.count(*keys))


def _number(name: str, *keys: str) -> Key:
    return Key(name, lambda c: c.number(*keys))


def _optional_count(name: str, key: str) -> Key:
    return Key(name, lambda c: None if c.get(key) is None else c.count(key))


def _optional(name: str, key: str) -> Key:
    return Key(name, lambda c: None if c.get(key) is None else c.number(key))


_BASE = (
    _count("context_length", "max_position_embeddings", "n_positions", "n_ctx"),
    Key("embedding_length", lambda c: c.n_embd),
    Key("block_count", lambda c: c.n_layer),
    Key("feed_forward_length", lambda c: c.n_ff),
    Key("attention.head_count", lambda c: c.n_head),
    Key("attention.head_count_kv", lambda c: c.n_head_kv),
    _count("vocab_size", "vocab_size"),
)
_RMS = (_number("attention.layer_norm_rms_epsilon", "rms_norm_eps"),)
_LAYER_NORM = (_number("attention.layer_norm_epsilon", "layer_norm_epsilon", "norm_epsilon"),)
_HEADS = (
    Key("attention.key_length", lambda c: c.head_dim),
    Key("attention.value_length", lambda c: c.head_dim),
)
_MOE = (
    Key("expert_count", SIZES["X"]),
    _count("expert_used_count", "num_experts_per_tok"),
)
_ROPE_WIDTH = (Key("rope.dimension_count", lambda c: c.head_dim),)


def _window_or_0(config: Config) -> int:
    return config.count("sliding_window") if config.get("sliding_window") else 0


_LLAMA = Architecture(
    "llama",
    {**_ENDS, **_ATTENTION, **_QKV_BIAS, **_GATED, **_GATED_BIAS},
    (*_BASE, *_RMS, *_HEADS, *_ROPE_WIDTH),
    assumes={"hidden_act": _SILU},
    changes=_PAIRS,
    rope_factors=("llama3", "longrope"),
)
_QWEN2 = Architecture(
    "qwen2",
    {**_ENDS, **_ATTENTION, **_QKV_BIAS, **_GATED},
    (*_BASE, *_RMS),
    assumes={"hidden_act": _SILU, "use_mrope": _NO},
)
_QWEN3 = Architecture(
    "qwen3",
    {**_ENDS, **_ATTENTION, **_QK_NORM, **_GATED},
    (*_BASE, *_RMS, *_HEADS),
    assumes={"hidden_act": _SILU, "attention_bias": _NO},
    ranks=True,
)
_GEMMA = Architecture(
    "gemma",
    {**_ENDS, **_ATTENTION, **_GATED},
    (*_BASE, *_RMS, *_HEADS),
    assumes={"hidden_activation": _GELU, "attention_bias": _NO},
    changes=_PLUS_ONE,
    always_tied=True,
    space_prefix=False,
)


def _sliding_layers(period: int) -> Callable[[Config], list[bool] | None]:
    """Which layers see a window only, where it is not all but every `period`-th."""

    def layers(config: Config) -> list[bool] | None:
        types = config.get("layer_types")
        every = config.get("sliding_window_pattern", "_sliding_window_pattern")
        if isinstance(types, list):
            sliding = [t == "sliding_attention" for t in types]
        else:
            sliding = _all_but_every(every if isinstance(every, int) and every else period, config)
        return None if sliding == _all_but_every(period, config) else sliding

    return layers


def _all_but_every(period: int, config: Config) -> list[bool]:
    return [i % period < period - 1 for i in range(config.n_layer)]


def _gemma_scale(large: int) -> Callable[[Config], str | None]:
    """llama.cpp scales scores by the head's width, and by n_embd / n_head in the largest model."""

    def check(config: Config) -> str | None:
        computed = config.n_embd // config.n_head if config.n_layer == large else config.head_dim
        asked = config.get("query_pre_attn_scalar")
        if asked in (None, computed):
            return None
        return f"query_pre_attn_scalar is {asked}, but llama.cpp's graph computes {computed}"

    return check


_GEMMA2 = Architecture(
    "gemma2",
    {**_GEMMA.tensors, **_POST_NORMS},
    (
        *_GEMMA.keys,
        _number("attn_logit_softcapping", "attn_logit_softcapping"),
        _number("final_logit_softcapping", "final_logit_softcapping"),
        _count("attention.sliding_window", "sliding_window"),
        Key("attention.sliding_window_pattern", _sliding_layers(2)),
    ),
    assumes={**_GEMMA.assumes, "use_bidirectional_attention": _NO},
    check=_gemma_scale(46),
    changes=_PLUS_ONE,
    always_tied=True,
    space_prefix=False,
)


def _gemma3_window(config: Config) -> int | None:
    """Width of the sliding window; a model whose every layer is global has none."""
    if config.get("sliding_window_pattern") == 1:
        return None
    return config.count("sliding_window")


_GEMMA3 = Architecture(
    "gemma3",
    {**_GEMMA2.tensors, **_QK_NORM},
    (
        *_GEMMA.keys,
        _optional("final_logit_softcapping", "final_logit_softcapping"),
        Key("attention.sliding_window", _gemma3_window),
        Key("attention.sliding_window_pattern", _sliding_layers(6)),
    ),
    check=_gemma_scale(62),
    assumes={
        **_GEMMA.assumes,
        "attn_logit_softcapping": (None,),
        "use_bidirectional_attention": _NO,
    },
    # The released config.json files leave out what equals transformers' Gemma3TextConfig.
    defaults={
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "rms_norm_eps": 1e-6,
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
    },
    changes=_PLUS_ONE,
    space_prefix=False,
)


def _dense_behind(config: Config) -> str | None:
    """EmbeddingGemma's matrices behind the pooling, which sentence-transformers keeps apart."""
    dense = sorted(p.name for p in config.path.parent.glob("*_Dense") if p.is_dir())
    if not dense:
        return None
    return f"left out what follows the pooling ({', '.join(dense)}), as llama.cpp's converter does"


_GEMMA_EMBEDDING = replace(
    _GEMMA3,
    name="gemma-embedding",
    assumes={**_GEMMA3.assumes, "use_bidirectional_attention": (True,)},
    check=_gemma_scale(-1),
    remark=_dense_behind,
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
    {**_ENDS, **_ATTENTION, **_GATED},
    (*_BASE, *_RMS, *_HEADS, *_ROPE_WIDTH),
    assumes={
        "hidden_act": _SILU,
        **dict.fromkeys(("attention_bias", "mlp_bias", "use_sliding_window"), _NO),
    },
    defaults={"rope_theta": 2_000_000.0},
    check=_every_fourth_without_rope,
    changes=_PAIRS,
)
_GRANITE = Architecture(
    "granite",
    _LLAMA.tensors,
    (
        *_LLAMA.keys,
        _number("attention.scale", "attention_multiplier"),
        _number("embedding_scale", "embedding_multiplier"),
        _number("residual_scale", "residual_multiplier"),
        _number("logit_scale", "logits_scaling"),
    ),
    assumes={"hidden_act": _SILU},
    defaults={
        "attention_multiplier": 1.0,
        "embedding_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "logits_scaling": 1.0,
    },
    changes=_PAIRS,
)
_OLMO2 = Architecture(
    "olmo2",
    {
        **_ENDS,
        "output.weight": "V E",
        "blk.{}.attn_q.weight": "E E",
        "blk.{}.attn_k.weight": "K E",
        "blk.{}.attn_v.weight": "K E",
        "blk.{}.attn_q_norm.weight": "E",
        "blk.{}.attn_k_norm.weight": "K",
        "blk.{}.attn_output.weight": "E E",
        "blk.{}.post_attention_norm.weight": "E",
        **_GATED,
        "blk.{}.post_ffw_norm.weight": "E",
    },
    (*_BASE, *_RMS),
    assumes={"hidden_act": _SILU, "attention_bias": _NO, "tie_word_embeddings": _NO},
    defaults={"rope_theta": 500_000.0},
)


def _windows(period: int) -> Callable[[Config], list[bool]]:
    """Which layers see a window only, by their kinds, else all but every `period`-th."""

    def layers(config: Config) -> list[bool]:
        kinds = config.get("layer_types")
        if isinstance(kinds, list):
            return [kind == "sliding_attention" for kind in kinds]
        return _all_but_every(period, config)

    return layers


_OLMO3 = replace(
    _OLMO2,
    keys=(
        *_OLMO2.keys,
        _count("attention.sliding_window", "sliding_window"),
        Key("attention.sliding_window_pattern", _windows(4)),
    ),
    defaults={**_OLMO2.defaults, "sliding_window": 4096},
)
_ERNIE4_5 = Architecture(
    "ernie4_5",
    {**_ENDS, **_ATTENTION, **_GATED},
    (*_BASE, *_RMS, *_HEADS),
    assumes={"hidden_act": _SILU, "use_bias": _NO},
    defaults={"rope_theta": 500_000.0},
)


def _temperature(config: Config) -> float | None:
    """By how much queries grow with the position (Llama 4's scaling, in Ministral 3)."""
    rope = config.section("rope_parameters", "rope_scaling")
    name = "llama_4_scaling_beta"
    return rope.number(name) if rope.get(name) else None


_MISTRAL3 = replace(
    _LLAMA,
    name="mistral3",
    tensors={**_ENDS, **_ATTENTION, "blk.{}.attn_output.bias": "E ?", **_GATED},
    keys=(*_LLAMA.keys, Key("attention.temperature_scale", _temperature)),
    rope_reads=("llama_4_scaling_beta",),
    yarn_ramps=True,
)


def _first_dense(config: Config, layer: int) -> str:
    return "dense" if layer < _dense_layers(config) else "experts"


def _dense_layers(config: Config) -> int:
    """Layers with one FFN, which come first."""
    name = "first_k_dense_replace"
    return config.count(name) if config.get(name) else 0


_SHARED = {
    "blk.{}.ffn_gate_shexp.weight": "N E @experts",
    "blk.{}.ffn_up_shexp.weight": "N E @experts",
    "blk.{}.ffn_down_shexp.weight": "E N @experts",
}
_GLM4_MOE = Architecture(
    "glm4moe",
    {
        **_ENDS,
        "blk.{}.attn_norm.weight": "E",
        "blk.{}.attn_q.weight": "Q E",
        "blk.{}.attn_k.weight": "K E",
        "blk.{}.attn_v.weight": "K E",
        **_QKV_BIAS,
        **{name: f"{size} ?" for name, size in _QK_NORM.items()},
        "blk.{}.attn_output.weight": "E Q",
        "blk.{}.post_attention_norm.weight": "E",
        **{name: f"{size} @dense" for name, size in _GATED.items()},
        **{name: f"{size} @experts" for name, size in _EXPERTS.items()},
        "blk.{}.exp_probs_b.bias": "X @experts",
        **_SHARED,
    },
    (
        *_BASE,
        *_RMS,
        *_HEADS,
        Key("rope.dimension_count", rope_width),
        *_MOE,
        _count("expert_feed_forward_length", "moe_intermediate_size"),
        _count("expert_shared_count", "n_shared_experts"),
        Key("leading_dense_block_count", _dense_layers),
        Key("expert_gating_func", lambda _: int(ExpertGatingFuncType.SIGMOID)),
        _optional_count("expert_group_count", "n_group"),
        _optional_count("expert_group_used_count", "topk_group"),
        _number("expert_weights_scale", "routed_scaling_factor"),
        Key("expert_weights_norm", lambda c: bool(c.get("norm_topk_prob"))),
    ),
    assumes={"hidden_act": _SILU, "n_group": (1, None), "topk_group": (1, None)},
    defaults={"partial_rotary_factor": 0.5, "n_shared_experts": 1, "routed_scaling_factor": 1.0},
    layer_kind=_first_dense,
    special={"bos": "[gMASK]", "eot": "<|user|>", "eom": "<|observation|>", "unk": "<|endoftext|>"},
    partial_rotary=True,
)


_DEEPSEEK3 = Architecture(
    "deepseek2",
    {
        **_ENDS,
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
        **{name: f"{size} @dense" for name, size in _GATED.items()},
        **{name: f"{size} @experts" for name, size in _EXPERTS.items()},
        "blk.{}.exp_probs_b.bias": "X @experts",
        **_SHARED,
    },
    (
        *(key for key in _BASE if key.name != "attention.head_count_kv"),
        Key("attention.head_count_kv", lambda _: 1),  # one latent for all heads
        *_RMS,
        _count("attention.q_lora_rank", "q_lora_rank"),
        _count("attention.kv_lora_rank", "kv_lora_rank"),
        Key("attention.key_length", SIZES["Ka"]),
        Key("attention.value_length", SIZES["Lk"]),
        Key(
            "attention.key_length_mla",
            lambda c: c.count("qk_nope_head_dim") + c.count("qk_rope_head_dim"),
        ),
        _count("attention.value_length_mla", "v_head_dim"),
        _count("rope.dimension_count", "qk_rope_head_dim"),
        *_MOE,
        _count("expert_feed_forward_length", "moe_intermediate_size"),
        _count("expert_shared_count", "n_shared_experts"),
        Key("leading_dense_block_count", _dense_layers),
        Key("expert_gating_func", lambda _: int(ExpertGatingFuncType.SIGMOID)),
        _optional_count("expert_group_count", "n_group"),
        _optional_count("expert_group_used_count", "topk_group"),
        _number("expert_weights_scale", "routed_scaling_factor"),
        Key("expert_weights_norm", lambda c: bool(c.get("norm_topk_prob"))),
    ),
    assumes={
        "hidden_act": _SILU,
        "attention_bias": _NO,
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
    layer_kind=_first_dense,
    latent_yarn=True,
)


def _rounded_ramp(config: Config) -> str | None:
    rope = config.section("rope_parameters", "rope_scaling")
    if rope.get("truncate") is not False:
        return None
    return "llama.cpp rounds the ends of YaRN's ramp, which truncate: false keeps as they are"


_GPT_OSS = Architecture(
    "gpt-oss",
    {
        **_ENDS,
        "output.weight": "V E",
        "blk.{}.attn_norm.weight": "E",
        "blk.{}.attn_q.weight": "Q E",
        "blk.{}.attn_q.bias": "Q",
        "blk.{}.attn_k.weight": "K E",
        "blk.{}.attn_k.bias": "K",
        "blk.{}.attn_v.weight": "K E",
        "blk.{}.attn_v.bias": "K",
        "blk.{}.attn_sinks.weight": "B",
        "blk.{}.attn_output.weight": "E Q",
        "blk.{}.attn_output.bias": "E",
        "blk.{}.post_attention_norm.weight": "E",
        **_EXPERTS,
        "blk.{}.ffn_gate_inp.bias": "X",
        "blk.{}.ffn_gate_exps.bias": "X M",
        "blk.{}.ffn_up_exps.bias": "X M",
        "blk.{}.ffn_down_exps.bias": "X E",
    },
    (
        *_BASE,
        *_RMS,
        *_HEADS,
        *_MOE,
        _count("expert_feed_forward_length", "intermediate_size"),
        _count("attention.sliding_window", "sliding_window"),
        Key("attention.sliding_window_pattern", _sliding_layers(2)),
    ),
    assumes={
        "hidden_act": _SILU,
        "attention_bias": (True, None),
        "tie_word_embeddings": _NO,
        "swiglu_limit": (7.0, None),
    },
    experts_take_turns=True,
    remark=_rounded_ramp,
    rope_reads=("truncate",),
)


def _qwen35_kind(config: Config, layer: int) -> str:
    kinds = config.get("layer_types")
    if isinstance(kinds, list) and layer < len(kinds):
        return "full" if kinds[layer] == "full_attention" else "linear"
    return "linear" if (layer + 1) % _full_every(config) else "full"


def _full_every(config: Config) -> int:
    name = "full_attention_interval"
    return config.count(name) if config.get(name) else 4


def _value_heads(config: Config, width: int) -> I64:
    """Rows of a delta net's values in ggml's order: heads of one key far apart, not together."""
    keys, values = config.count("linear_num_key_heads"), config.count("linear_num_value_heads")
    if values % keys:
        raise FileFormatError(f"{config.path}: {values} value heads are no multiple of {keys} keys")
    order = np.arange(values * width).reshape(keys, values // keys, width)
    return order.swapaxes(0, 1).reshape(-1)


def _values_last(config: Config) -> I64:
    """Rows of queries, keys and values of a delta net, the values in ggml's order."""
    width = config.count("linear_value_head_dim")
    before = 2 * config.count("linear_num_key_heads") * config.count("linear_key_head_dim")
    return np.concatenate([np.arange(before), before + _value_heads(config, width)])


def _qwen35_check(config: Config) -> str | None:
    if config.get("linear_key_head_dim") == config.get("linear_value_head_dim"):
        return None
    return "key and value heads of different widths; llama.cpp's graph has one width for both"


def _sections(config: Config) -> list[int]:
    """How many rotated pairs follow each axis of an image; a text's positions are all alike."""
    sections = config.section("rope_parameters", "rope_scaling").get("mrope_section")
    if sections is None:
        return [11, 11, 10, 0]
    if not isinstance(sections, list) or not all(isinstance(n, int) for n in sections):
        raise FileFormatError(f"{config.path}: mrope_section is no list of numbers")
    return [*sections, 0, 0, 0, 0][:4]


_QWEN35 = Architecture(
    "qwen35",
    {
        **_ENDS,
        "blk.{}.attn_norm.weight": "E",
        "blk.{}.attn_q.weight": "R E @full",
        "blk.{}.attn_k.weight": "K E @full",
        "blk.{}.attn_v.weight": "K E @full",
        **{name: f"{size} @full" for name, size in _QK_NORM.items()},
        "blk.{}.attn_output.weight": "E Q @full",
        "blk.{}.attn_qkv.weight": "W E @linear",
        "blk.{}.attn_gate.weight": "Z E @linear",
        "blk.{}.ssm_conv1d.weight": "W C @linear",
        "blk.{}.ssm_dt.bias": "H @linear",
        "blk.{}.ssm_a": "H @linear",
        "blk.{}.ssm_beta.weight": "H E @linear",
        "blk.{}.ssm_alpha.weight": "H E @linear",
        "blk.{}.ssm_norm.weight": "S @linear",
        "blk.{}.ssm_out.weight": "E Z @linear",
        "blk.{}.post_attention_norm.weight": "E",
        **_GATED,
    },
    (
        *_BASE,
        *_RMS,
        *_HEADS,
        Key("rope.dimension_count", rope_width),
        Key("rope.dimension_sections", _sections),
        _count("ssm.conv_kernel", "linear_conv_kernel_dim"),
        _count("ssm.state_size", "linear_key_head_dim"),
        _count("ssm.group_count", "linear_num_key_heads"),
        _count("ssm.time_step_rank", "linear_num_value_heads"),
        Key("ssm.inner_size", SIZES["Z"]),
        Key(
            "attention.recurrent_layers",
            lambda c: [_qwen35_kind(c, i) == "linear" for i in range(c.n_layer)],
        ),
        Key("full_attention_interval", _full_every),
    ),
    assumes={"hidden_act": _SILU, "attention_bias": _NO, "attn_output_gate": (True, None)},
    defaults={"partial_rotary_factor": 0.25},
    check=_qwen35_check,
    changes=(
        (re.compile(r"(?<!linear_attn\.)norm\.weight$"), lambda t, _: shifted(t, 1.0)),
        (re.compile(r"\.A_log$"), lambda t, _: mapped(t, lambda x: -np.exp(x))),
        (
            re.compile(r"\.(A_log|dt_proj\.bias|in_proj_a\.weight|in_proj_b\.weight)$"),
            lambda t, c: reordered(t, _value_heads(c, 1)),
        ),
        (
            re.compile(r"\.in_proj_z\.weight$"),
            lambda t, c: reordered(t, _value_heads(c, c.count("linear_value_head_dim"))),
        ),
        (
            re.compile(r"\.(in_proj_qkv|conv1d)\.weight$"),
            lambda t, c: reordered(t, _values_last(c)),
        ),
        (
            re.compile(r"linear_attn\.out_proj\.weight$"),
            lambda t, c: with_columns(t, _value_heads(c, c.count("linear_value_head_dim"))),
        ),
    ),
    layer_kind=_qwen35_kind,
    partial_rotary=True,
    rope_reads=("mrope_section", "mrope_interleaved"),
)

# Hugging Face's class (config.json: architectures) -> its row.
ARCHITECTURES: Mapping[str, Architecture] = {
    "LlamaForCausalLM": _LLAMA,
    "MistralForCausalLM": _LLAMA,
    "MixtralForCausalLM": Architecture(
        "llama",
        {**_ENDS, **_ATTENTION, **_EXPERTS},
        (*_LLAMA.keys, *_MOE),
        assumes={"hidden_act": _SILU},
        defaults={"rope_theta": 1_000_000.0},
        changes=_PAIRS,
        rope_factors=("llama3", "longrope"),
    ),
    "LlamaModel": _LLAMA,
    "Mistral3ForConditionalGeneration": _MISTRAL3,
    "Ministral3ForCausalLM": _MISTRAL3,
    "Gemma3TextModel": _GEMMA_EMBEDDING,
    "DeepseekV3ForCausalLM": _DEEPSEEK3,
    "SmolLM3ForCausalLM": _SMOLLM3,
    "GptOssForCausalLM": _GPT_OSS,
    "Glm4MoeForCausalLM": _GLM4_MOE,
    "Qwen3_5ForCausalLM": _QWEN35,
    "Qwen3_5ForConditionalGeneration": _QWEN35,
    "GraniteForCausalLM": _GRANITE,
    "Olmo2ForCausalLM": _OLMO2,
    "Olmo3ForCausalLM": _OLMO3,
    "Ernie4_5ForCausalLM": _ERNIE4_5,
    "Ernie4_5_ForCausalLM": _ERNIE4_5,
    "Qwen2ForCausalLM": _QWEN2,
    "Qwen2Model": _QWEN2,
    "Qwen3ForCausalLM": _QWEN3,
    "Qwen3Model": _QWEN3,
    "Qwen3MoeForCausalLM": Architecture(
        "qwen3moe",
        {**_ENDS, **_ATTENTION, **_QK_NORM, **_EXPERTS},
        (*_QWEN3.keys, *_MOE, _count("expert_feed_forward_length", "moe_intermediate_size")),
        assumes={**_QWEN3.assumes, "norm_topk_prob": (True,)},
    ),
    "Phi3ForCausalLM": Architecture(
        "phi3",
        {
            **_ENDS,
            "blk.{}.attn_norm.weight": "E",
            "blk.{}.attn_qkv.weight": "A E",
            "blk.{}.attn_output.weight": "E Q",
            "blk.{}.ffn_norm.weight": "E",
            "blk.{}.ffn_up.weight": "G E",
            "blk.{}.ffn_down.weight": "E F",
        },
        (
            *_BASE,
            *_RMS,
            Key("rope.dimension_count", rope_width),
            # llama.cpp switches Phi-3's window off; 0 also tells it apart from Phi-4.
            Key("attention.sliding_window", _window_or_0),
        ),
        assumes={"hidden_act": _SILU},
        partial_rotary=True,
        rope_factors=("longrope",),
    ),
    "GPT2LMHeadModel": Architecture(
        "gpt2",
        {
            **_ENDS,
            **_BIASED_NORMS,
            **_UP_DOWN,
            "position_embd.weight": "P E",
            "blk.{}.attn_norm.weight": "E",
            "blk.{}.attn_qkv.weight": "A E",
            "blk.{}.attn_qkv.bias": "A",
            "blk.{}.attn_output.weight": "E Q",
            "blk.{}.ffn_norm.weight": "E",
        },
        (*_BASE, *_LAYER_NORM),
        assumes={
            "activation_function": _GELU,
            "scale_attn_weights": (True, None),
            "scale_attn_by_inverse_layer_idx": _NO,
            "add_cross_attention": _NO,
        },
        transposed=re.compile(r"\.c_(attn|proj|fc)\.weight$"),
        rope=False,
    ),
    "Starcoder2ForCausalLM": Architecture(
        "starcoder2",
        {**_ENDS, **_BIASED_NORMS, **_ATTENTION, **_QKV_BIAS, **_UP_DOWN},
        (*_BASE, *_LAYER_NORM),
        assumes={
            "hidden_act": _GELU,
            "use_bias": (True, None),
            "norm_type": ("layer_norm", None),
            "mlp_type": ("default", None),
        },
    ),
    "GemmaForCausalLM": _GEMMA,
    "Gemma2ForCausalLM": _GEMMA2,
    "Gemma3ForCausalLM": _GEMMA3,
    "Gemma3ForConditionalGeneration": _GEMMA3,
}


def find_architecture(config: Config) -> Architecture:
    """The row for config.json's architectures; UnknownClassError if there is none."""
    names = config.get("architectures")
    if not isinstance(names, list) or not names:
        raise UnsupportedModelError(
            f"{config.path}: has no architectures, so the graph is unknown; expected a causal "
            "language model's config.json"
        )
    name = str(names[0])[:60]
    if name not in ARCHITECTURES:
        raise UnknownClassError(
            f"{config.path}: {name} cannot be converted natively; {_elsewhere(config.path, name)}",
            name=name,
            official=name in official_classes(),
        )
    return ARCHITECTURES[name]


def _elsewhere(path: Path, name: str) -> str:
    """What else there is for a class without a row."""
    if name not in official_classes():
        return "llama.cpp's own converter does not know it either"
    folder = path.parent
    return (
        "llama.cpp's own converter can: fetch it with scripts/build_llama_cpp.sh converter, or "
        "name it with --converter, and run this again; or run: python convert_hf_to_gguf.py "
        f"{folder} --outtype bf16 --outfile {folder.name or 'model'}-bf16.gguf"
    )


@cache
def official_classes() -> frozenset[str]:
    """The classes that llama.cpp's converter knows; tests compare the list with the converter."""
    text = files(__package__).joinpath("official.txt").read_text("utf-8")
    return frozenset(text.split())
