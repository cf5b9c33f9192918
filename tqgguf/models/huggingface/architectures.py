"""What the converter knows of each architecture: one row of a table.

A row says which tensors its graph in llama.cpp loads and how wide they are, which of config.json's
values become which GGUF keys, and what that graph cannot do. To add an architecture, add a row.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tqgguf.errors import FileFormatError, UnsupportedModelError
from tqgguf.models.huggingface.folder import Config

Size = Callable[[Config], int]

# Letters for the widths of tensors.
SIZES: Mapping[str, Size] = {
    "V": lambda c: c.count("vocab_size"),
    "E": lambda c: c.n_embd,
    "P": lambda c: c.count("n_positions", "max_position_embeddings"),
    "D": lambda c: c.head_dim,
    "Q": lambda c: c.n_head * c.head_dim,
    "K": lambda c: c.n_head_kv * c.head_dim,
    "A": lambda c: (c.n_head + 2 * c.n_head_kv) * c.head_dim,
    "F": lambda c: c.n_ff,
    "G": lambda c: 2 * c.n_ff,
    "X": lambda c: c.count("num_local_experts", "num_experts"),
    "M": lambda c: c.count("moe_intermediate_size", "intermediate_size"),
}

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

_SILU = ("silu", "swish", None)
_GELU = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", None)
_NO = (False, None)


@dataclass(frozen=True)
class Key:
    """One GGUF key: where config.json has it, or how it follows from the rest."""

    name: str  # without the architecture's prefix
    value: Callable[[Config], int | float | list[bool] | None]  # None: leave the key out


@dataclass(frozen=True)
class Architecture:
    """One row: how a Hugging Face class becomes a GGUF graph.

    assumes: config key -> the values that llama.cpp's graph computes; where the key is absent it
    has transformers' default, None unless defaults says otherwise. check: what else it cannot
    compute, in words, or None.
    """

    name: str
    tensors: Mapping[str, str]
    keys: tuple[Key, ...]
    assumes: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    check: Callable[[Config], str | None] | None = None
    rotary_pairs: bool = False  # ggml rotates neighbouring rows of q and k
    norm_shift: float = 0.0
    transposed: re.Pattern[str] | None = None
    always_tied: bool = False  # the graph never loads output.weight
    space_prefix: bool | None = None  # what its SentencePiece tokenizers do; None: ask them
    ranks: bool = False  # a reranker among its models has a head of its own
    rope: bool = True
    partial_rotary: bool = False  # the graph may rotate less than a whole head
    rope_factors: tuple[str, ...] = ()  # rope types whose tensors of factors the graph loads


def _count(name: str, *keys: str) -> Key:
    return Key(name, lambda c: c.count(*keys))


def _number(name: str, *keys: str) -> Key:
    return Key(name, lambda c: c.number(*keys))


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


def rope_width(config: Config) -> int:
    """Rotated weights of a head; FileFormatError if there would be more than it has."""
    name = "partial_rotary_factor"
    for source in (config, config.section("rope_parameters", "rope_scaling")):
        if source.get(name) is not None:
            if source.positive(name) > 1:
                raise FileFormatError(f"{config.path}: {name} is above 1")
            return int(source.positive(name) * config.head_dim)
    return config.head_dim


def _window_or_0(config: Config) -> int:
    return config.count("sliding_window") if config.get("sliding_window") else 0


_LLAMA = Architecture(
    "llama",
    {**_ENDS, **_ATTENTION, **_QKV_BIAS, **_GATED, **_GATED_BIAS},
    (*_BASE, *_RMS, *_HEADS, *_ROPE_WIDTH),
    assumes={"hidden_act": _SILU},
    rotary_pairs=True,
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
    norm_shift=1.0,
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
    norm_shift=1.0,
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
    norm_shift=1.0,
    space_prefix=False,
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
        rotary_pairs=True,
        rope_factors=("llama3", "longrope"),
    ),
    "LlamaModel": _LLAMA,
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
    """The row for config.json's architectures; UnsupportedModelError if there is none."""
    names = config.get("architectures")
    if not isinstance(names, list) or not names:
        raise UnsupportedModelError(
            f"{config.path}: has no architectures, so the graph is unknown; expected a causal "
            "language model's config.json"
        )
    row = ARCHITECTURES.get(str(names[0]))
    if row is None:
        raise UnsupportedModelError(
            f"{config.path}: {str(names[0])[:60]} cannot be converted; these can: "
            f"{', '.join(name.removesuffix('ForCausalLM') for name in ARCHITECTURES)}; convert it "
            "with llama.cpp and give tqgguf the GGUF file"
        )
    return row


def check_assumptions(config: Config, architecture: Architecture) -> None:
    """UnsupportedModelError where llama.cpp's graph computes something else than config.json."""
    for key, allowed in architecture.assumes.items():
        if config.get(key) not in allowed:
            raise UnsupportedModelError(
                f"{config.path}: {key} is {config.get(key)!r}, but llama.cpp's "
                f"{architecture.name} graph computes {' or '.join(map(repr, allowed))}"
            )
    problem = architecture.check(config) if architecture.check else None
    if problem:
        raise UnsupportedModelError(f"{config.path}: {problem}")
