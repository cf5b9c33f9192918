"""Qwen 3.5 and Qwen3-Next: every fourth layer attends, the others are delta nets."""

import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

import numpy as np

from tqgguf.errors import FileFormatError
from tqgguf.kernels.dtypes import I64
from tqgguf.models.huggingface.architecture import SIZES, Architecture, Key, rope_width
from tqgguf.models.huggingface.changes import chosen, mapped, reordered, shifted, with_columns
from tqgguf.models.huggingface.families._parts import (
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
    RMS,
    SECTIONS,
    SILU,
    count,
    of_kind,
    optional_count,
    with_keys,
)
from tqgguf.models.huggingface.folder import Config
from tqgguf.models.model import Tensor


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


_QWEN35 = Architecture(
    "qwen35",
    {
        **ENDS,
        "blk.{}.attn_norm.weight": "E",
        "blk.{}.attn_q.weight": "R E @full",
        "blk.{}.attn_k.weight": "K E @full",
        "blk.{}.attn_v.weight": "K E @full",
        **of_kind("full", QK_NORM),
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
        **GATED,
    },
    (
        *BASE,
        *RMS,
        *HEAD_KEYS,
        Key("rope.dimension_count", rope_width),
        *SECTIONS,
        count("ssm.conv_kernel", "linear_conv_kernel_dim"),
        count("ssm.state_size", "linear_key_head_dim"),
        count("ssm.group_count", "linear_num_key_heads"),
        count("ssm.time_step_rank", "linear_num_value_heads"),
        Key("ssm.inner_size", SIZES["Z"]),
        Key(
            "attention.recurrent_layers",
            lambda c: [_qwen35_kind(c, i) == "linear" for i in range(c.n_layer)],
        ),
        Key("full_attention_interval", _full_every),
    ),
    assumes={"hidden_act": SILU, "attention_bias": NO, "attn_output_gate": (True, None)},
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

_QWEN35_MOE = replace(
    _QWEN35,
    name="qwen35moe",
    tensors={
        **{name: size for name, size in _QWEN35.tensors.items() if name not in GATED},
        **EXPERTS,
        **GATED_SHARED,
    },
    keys=(
        *with_keys(_QWEN35.keys, optional_count("feed_forward_length", "intermediate_size")),
        *MOE,
        *EXPERT_WIDTH,
        count("expert_shared_feed_forward_length", "shared_expert_intermediate_size"),
    ),
)

_BETA_ALPHA = ("blk.{}.ssm_beta.weight", "blk.{}.ssm_alpha.weight")


def _taken_apart(tensor: Tensor, config: Config) -> list[Tensor]:
    """Qwen3-Next's rows, which hold q, k, v and z of one key after the other, as q k v and z."""
    n_key, width = config.count("linear_num_key_heads"), config.count("linear_key_head_dim")
    values = config.count("linear_num_value_heads") * config.count("linear_value_head_dim") // n_key
    ends = np.cumsum([0, width, width, values, values])
    if tensor.shape[0] != n_key * ends[-1]:
        raise FileFormatError(
            f"{tensor.name}: {tensor.shape[0]} rows are not those of {n_key} keys"
        )
    rows = np.arange(tensor.shape[0]).reshape(n_key, -1)
    q, k, v, z = (rows[:, a:b].reshape(-1) for a, b in pairwise(ends))
    parts = (("qkv", np.concatenate([q, k, v])), ("z", z))
    return [
        chosen(tensor, order, tensor.name.replace("in_proj_qkvz", f"in_proj_{part}"))
        for part, order in parts
    ]


_QWEN3_NEXT = replace(
    _QWEN35_MOE,
    name="qwen3next",
    tensors={
        **{n: size for n, size in _QWEN35_MOE.tensors.items() if n not in _BETA_ALPHA},
        "blk.{}.ssm_ba.weight": "2H E @linear",
    },
    keys=tuple(key for key in _QWEN35_MOE.keys if key not in SECTIONS),
    assumes={**_QWEN35.assumes, "norm_topk_prob": (True, None), "decoder_sparse_step": (1, None)},
    changes=_QWEN35.changes[:2],
    splits=((re.compile(r"\.in_proj_qkvz\.weight$"), _taken_apart),),
    rope_reads=(),
)

CLASSES: Mapping[str, Architecture] = {
    "Qwen3NextForCausalLM": _QWEN3_NEXT,
    "Qwen3_5MoeForCausalLM": _QWEN35_MOE,
    "Qwen3_5MoeForConditionalGeneration": _QWEN35_MOE,
    "Qwen3_5ForCausalLM": _QWEN35,
    "Qwen3_5ForConditionalGeneration": _QWEN35,
}
